"""A stand-in for SGLang's ``Engine`` that knows no more arguments than it, and has its manners.

Tokens count up from the last one of the prompt. ``ServerArgs.model_path`` may be ``crash`` or ``broken``.
"""

import asyncio
import os
import sys
from types import SimpleNamespace

from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

NEVER = 10_000  # a token of the prompt that keeps the request waiting


class TokenizerManager:
    def __init__(self, args):
        self.server_args = args
        self.model_config = SimpleNamespace(context_len=args.context_length, vocab_size=20_000)
        self.running = {}
        self.rid_to_state = {}
        self.lookups_may_end = asyncio.Event()

    def auto_create_handle_loop(self):
        pass

    def abort_request(self, rid="", abort_all=False):
        """The scheduler drops what it hears of requests that it does not know; it is told once of each."""
        state = self.rid_to_state.get(rid)
        if state is None or state.abort_sent:
            return
        state.abort_sent = True
        for name, request in self.running.items():
            if abort_all or name.startswith(rid):
                request.set()

    async def get_loads(self):
        return [SimpleNamespace(num_used_tokens=32 * len(self.running))]


class Engine:
    def __init__(self, **kwargs):
        self.args = args = ServerArgs(**kwargs)
        if args.model_path == "crash":
            sys.stderr.write("RuntimeError: no kernel for this device\nmore lines\n")
            sys.stderr.flush()
            os._exit(3)
        if args.model_path == "broken":
            raise ValueError("no weights in the folder")
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.tokenizer_manager = TokenizerManager(args)
        self._scheduler_init_result = SimpleNamespace(scheduler_infos=[{"max_total_num_tokens": 1024}])

    async def async_generate(
        self,
        prompt=None,
        sampling_params=None,
        input_ids=None,
        return_logprob=False,
        top_logprobs_num=None,
        lora_path=None,
        stream=False,
        bootstrap_host=None,
        bootstrap_port=None,
        bootstrap_room=None,
        data_parallel_rank=None,
        rid=None,
    ):
        """The signature of an older version: no priority, no salt, another name for the rank."""
        sampling = SamplingParams(**sampling_params)
        if sampling.temperature < 0:
            raise ValueError("temperature must not be negative")
        return self._outputs(rid, input_ids, sampling, return_logprob, lora_path)

    async def _outputs(self, rid, input_ids, sampling, return_logprob, lora):
        manager = self.tokenizer_manager
        state = manager.rid_to_state[rid] = SimpleNamespace(dispatched=False, abort_sent=False)
        if lora == "looked-up":  # until another one has been loaded
            await manager.lookups_may_end.wait()
        is_aborted = manager.running[rid] = asyncio.Event()
        state.dispatched = True
        try:
            if NEVER in input_ids:
                await is_aborted.wait()
            for number in range(1, sampling.max_new_tokens + 1):
                token, finish = input_ids[-1] + number, None
                if is_aborted.is_set():
                    finish = {"type": "abort", "message": "Aborted", "status_code": None}
                elif number == sampling.max_new_tokens:
                    finish = {"type": "length", "length": number}
                meta = {"id": rid, "finish_reason": finish, "cached_tokens": 4}
                if return_logprob:
                    meta |= {"output_token_logprobs": [(-0.5, token, None)], "output_top_logprobs": [None]}
                yield {"text": "", "output_ids": [token], "meta_info": meta}
                if is_aborted.is_set():
                    return
                await asyncio.sleep(0)
        finally:
            del manager.running[rid], manager.rid_to_state[rid]

    async def async_load_lora_adapter(self, lora_name, lora_path, pinned=False):
        if lora_name != "looked-up":
            self.tokenizer_manager.lookups_may_end.set()
        return SimpleNamespace(success="nowhere" not in lora_path, error_message="no such folder")

    async def async_unload_lora_adapter(self, lora_name):
        return SimpleNamespace(success=True, error_message=None)

    def shutdown(self):
        pass


__version__ = "0"
