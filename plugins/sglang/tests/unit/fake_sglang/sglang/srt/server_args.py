from dataclasses import dataclass


@dataclass
class ServerArgs:
    """Some of SGLang's fields; what is ours and newer than this is not there."""

    model_path: str
    served_model_name: str | None = None
    host: str = "127.0.0.1"
    log_level: str = "info"
    context_length: int = 512
    page_size: int = 16
    dp_size: int = 1
    schedule_policy: str = "fcfs"
    skip_tokenizer_init: bool = False
    kv_events_config: str | None = None
    incremental_streaming_output: bool = False
    disaggregation_mode: str = "null"
    disaggregation_transfer_backend: str = "mooncake"
    disaggregation_bootstrap_port: int = 8998

    def __post_init__(self):
        assert self.incremental_streaming_output, "outputs would be cumulative"
