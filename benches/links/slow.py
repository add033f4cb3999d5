"""Slow links for a testnet: a proxy before its store that lets every connection carry so many bytes a second each way.

    python benches/links/slow.py --listen 9402 --store 9401 --bytes-per-second 250000 &
    iota-orchestrator testnet --store-listen 127.0.0.1:9401 --store-url http://127.0.0.1:9402 --out /tmp/slow

docs/BENCHES.md says what is measured with it. Needs Python 3.11 and nothing else.
"""

import argparse
import asyncio
import time


async def relay(reader, writer, bytes_per_second):
    """Hands on what comes, no faster than the link would."""
    free_at = time.monotonic()
    try:
        while data := await reader.read(16 * 1024):
            now = time.monotonic()
            free_at = max(free_at, now) + len(data) / bytes_per_second
            await asyncio.sleep(free_at - now)
            writer.write(data)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", type=int, required=True, help="port that peers call")
    parser.add_argument("--store", type=int, required=True, help="port at which the store listens")
    parser.add_argument("--bytes-per-second", type=float, required=True, help="of each connection and direction")
    arguments = parser.parse_args()

    async def carry(reader, writer):
        to_store = await asyncio.open_connection("127.0.0.1", arguments.store)
        rate = arguments.bytes_per_second
        await asyncio.gather(
            relay(reader, to_store[1], rate),
            relay(to_store[0], writer, rate),
        )

    server = await asyncio.start_server(carry, "127.0.0.1", arguments.listen)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
