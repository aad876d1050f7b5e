"""Lets a program that speaks no TLS talk to a server that speaks nothing else: forwards each connection, sealed.

usage: over_tls.py HOST:PORT          prints the address of loopback at which it takes plain connections
"""

import asyncio
import contextlib
import ssl
import sys


async def carry(reader, writer):
    """Carries bytes one way until there are no more."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(target):
    host, port = target.rsplit(":", 1)
    context = ssl.create_default_context()
    # The certificate was made for this run; that it is the right one is tested elsewhere.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3

    async def forward(reader, writer):
        try:
            server_reader, server_writer = await asyncio.open_connection(host, int(port), ssl=context)
        except OSError as error:
            print(error, file=sys.stderr)
            return writer.close()
        await asyncio.gather(carry(reader, server_writer), carry(server_reader, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    print("%s:%d" % server.sockets[0].getsockname()[:2], flush=True)
    await server.serve_forever()


asyncio.run(main(sys.argv[1]))
