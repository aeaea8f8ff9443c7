"""The clients that scripts/bench holds the runner against, written as people write them.

- `sdk`: AsyncOpenAI's typed stream on its default transport. Each piece of text goes to deltas.jsonl as it arrives,
  each whole answer to results.jsonl, both through `json.dumps` and a buffered file. A semaphore and a task a job.
- `sdk-aiohttp`: the same on DefaultAioHttpClient, told of the concurrency, since aiohttp's own limit is 100.
- `bare`: aiohttp and orjson with nothing round them: it reads blocks, splits events, parses them and joins the text.
  No file, no error handled, no metric: what is left when everything is left out.

Each ends with exit code 1 if one answer lacked its text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("sdk", "sdk-aiohttp", "bare")


async def sdk(options: argparse.Namespace, http_client: Any) -> int:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=options.base_url, api_key="bench", http_client=http_client, timeout=3600)
    gate = asyncio.Semaphore(options.concurrency)
    options.out.mkdir(parents=True, exist_ok=True)

    async def one(job: dict[str, str]) -> bool:
        async with gate:
            stream = await client.chat.completions.create(
                model="bench-1",
                messages=[{"role": "user", "content": job["prompt"]}],
                stream=True,
                stream_options={"include_usage": True},
            )
            text, usage = [], None
            async for chunk in stream:
                if chunk.usage is not None:
                    usage = chunk.usage.model_dump()
                if chunk.choices and chunk.choices[0].delta.content:
                    piece = chunk.choices[0].delta.content
                    text.append(piece)
                    deltas.write(json.dumps({"custom_id": job["custom_id"], "delta": piece}) + "\n")
        answer = "".join(text)
        results.write(json.dumps({"custom_id": job["custom_id"], "text": answer, "usage": usage}) + "\n")
        results.flush()
        return bool(answer)

    with (options.out / "deltas.jsonl").open("w") as deltas, (options.out / "results.jsonl").open("w") as results:
        good = await asyncio.gather(*map(one, jobs_of(options.jobs)))
    await client.close()
    return 0 if all(good) else 1


async def sdk_default(options: argparse.Namespace) -> int:
    return await sdk(options, None)


async def sdk_aiohttp(options: argparse.Namespace) -> int:
    import httpx2
    from openai import DefaultAioHttpClient

    return await sdk(options, DefaultAioHttpClient(limits=httpx2.Limits(max_connections=options.concurrency)))


async def bare(options: argparse.Namespace) -> int:
    import aiohttp
    import orjson

    url = f"{options.base_url}/chat/completions"
    jobs = iter(jobs_of(options.jobs))
    bad = 0

    async def worker() -> None:
        nonlocal bad
        for job in jobs:
            body = {"model": "bench-1", "messages": [{"role": "user", "content": job["prompt"]}], "stream": True}
            text, rest = [], b""
            async with session.post(url, data=orjson.dumps(body), headers=headers) as response:
                async for block in response.content.iter_any():
                    *events, rest = (rest + block).split(b"\n\n")
                    for event in events:
                        if event != b"data: [DONE]":
                            choices = orjson.loads(event[6:])["choices"]
                            text += [choice["delta"].get("content") or "" for choice in choices]
            bad += not "".join(text)

    headers = {"authorization": "Bearer bench", "content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        await asyncio.gather(*(worker() for _ in range(options.concurrency)))
    return 1 if bad else 0


def jobs_of(path: Path) -> Iterator[dict[str, str]]:
    with path.open("rb") as lines:
        yield from map(json.loads, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    return asyncio.run({"sdk": sdk_default, "sdk-aiohttp": sdk_aiohttp, "bare": bare}[options.kind](options))


if __name__ == "__main__":
    sys.exit(main())
