"""What a vLLM server says about itself."""

from __future__ import annotations

import pytest

from dynamo_sdk.engines.zmq_events import EventEndpoints
from dynamo_sdk_vllm.remote import VllmRemoteConfig, block_size_in, event_endpoints, said_endpoints

METRICS = """\
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",num_gpu_blocks="33"} 1.0
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="1",num_gpu_blocks="33"} 1.0
"""


def test_stars_are_the_servers_host():
    said = {
        "1": {"endpoint": "tcp://*:5558", "replay_endpoint": None, "publisher": "zmq"},
        "0": {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:6557"},
    }
    assert said_endpoints(said, host="10.0.0.7") == [
        EventEndpoints(dp_rank=0, publisher="tcp://10.0.0.7:5557", replay="tcp://10.0.0.7:6557"),
        EventEndpoints(dp_rank=1, publisher="tcp://10.0.0.7:5558"),
    ]
    assert said_endpoints({}, host="h") == []


def test_the_deploy_file_names_ranks_in_order():
    config = VllmRemoteConfig(url="http://h", kv_events=("tcp://h:1", "tcp://h:2"))
    assert [source.publisher for source in event_endpoints(config)] == ["tcp://h:1", "tcp://h:2"]
    with pytest.raises(ValueError):
        event_endpoints(config.model_copy(update={"kv_replays": ("tcp://h:3",)}))


def test_the_block_size_is_in_the_metrics():
    assert block_size_in(METRICS) == 32
    assert block_size_in("") is None
