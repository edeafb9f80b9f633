"""An engine, a router, a planner and a KV store for dynamo_sdk."""
