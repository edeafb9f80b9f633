"""A real model whose prompts are read by one worker and whose answers are written by another, in one script.

    python examples/02_disaggregated.py        (needs `pip install openai`)

`graph.local()` runs the whole graph in this process, for notebooks and tests; `dynamo-sdk run` gives the same
file one process per replica. The KV cache moves from the prefill worker to the decode worker in both cases.
"""

import asyncio

from openai import AsyncOpenAI

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker

QUESTIONS = ["What is a KV block?", "What is prefill?", "What does a router do?"]


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class Api(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


graph = Graph(Api, router="least-loaded")


async def main() -> None:
    async with graph.local(set=["services.Decode.replicas=2"]) as app:
        async with AsyncOpenAI(base_url=f"{app.url}/v1", api_key="none") as client:
            for question in QUESTIONS:
                print(f"\n> {question}")
                stream = await client.chat.completions.create(
                    model="demo",
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    stream=True,
                )
                async for chunk in stream:
                    print(chunk.choices[0].delta.content or "", end="", flush=True)
                print()


if __name__ == "__main__":
    asyncio.run(main())
