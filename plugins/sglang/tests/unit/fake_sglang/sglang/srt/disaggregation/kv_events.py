class KVEventsConfig:
    model_fields = {"publisher": None, "endpoint": None, "replay_endpoint": None}
