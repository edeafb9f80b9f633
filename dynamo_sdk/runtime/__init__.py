"""The shells around the decisions: clock, network, connections, discovery, clients, the replica host."""
