"""An Apache Thrift server for tests. It prints one line of JSON, {"port":N}, as
soon as it accepts connections.

It serves the service Echo by itself and, to clients that multiplex, as "Echo"
and "Audit".
"""

import argparse
import json
import threading
import time

from thrift.protocol.THeaderProtocol import THeaderProtocol
from thrift.server.TServer import TThreadedServer
from thrift.TMultiplexedProcessor import TMultiplexedProcessor
from thrift.transport.TSocket import TServerSocket

from echo import Echo
from echo.ttypes import Refusal
import wire


class Handler:
    """Implements Echo.Iface."""

    def __init__(self, name):
        self.name = name
        self.count = 0
        self.lock = threading.Lock()
        # The library does not tell handlers on which connection they serve, and
        # serves each on a thread of its own.
        self.here = threading.local()

    def served(self):
        """Names the instance in the headers of the answer, where it has any."""
        if isinstance(self.here.protocol, THeaderProtocol):
            self.here.protocol.set_header(b"served-by", self.name.encode())

    def who(self):
        self.served()
        return self.name

    def echo(self, text):
        self.served()
        return self.name + ": " + text

    def add(self, a, b):
        return a + b

    def touch(self, key):
        self.tell(key)

    def fail(self, code):
        self.served()
        raise Refusal(code=code, reason="refused by " + self.name)

    def crash(self):
        raise RuntimeError("crash in " + self.name)

    def slow(self, ms):
        time.sleep(ms / 1000)
        return self.name

    def blob(self, bytes):
        return bytes

    def headers(self):
        self.served()
        if not isinstance(self.here.protocol, THeaderProtocol):
            return {}
        return {k.decode(): v.decode() for k, v in self.here.protocol.get_headers().items()}

    def tell(self, text):
        with self.lock:
            self.count += 1

    def told(self):
        with self.lock:
            return self.count


class Processor(TMultiplexedProcessor):
    """Tells the handler which connection it serves."""

    def __init__(self, handler):
        TMultiplexedProcessor.__init__(self)
        self.handler = handler
        one = Echo.Processor(handler)
        self.registerDefault(one)
        for service in ("Echo", "Audit"):
            self.registerProcessor(service, one)

    def process(self, iprot, oprot):
        self.handler.here.protocol = iprot
        return TMultiplexedProcessor.process(self, iprot, oprot)


class Socket(TServerSocket):
    """Tells its port once it listens."""

    def listen(self):
        TServerSocket.listen(self)
        print(json.dumps({"port": self.handle.getsockname()[1]}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-name", default="python", help="of this instance, in its answers")
    parser.add_argument("-host", default="127.0.0.1", help="to serve at")
    parser.add_argument("-port", type=int, default=0, help="0 lets the kernel choose")
    wire.add_flags(parser)
    o = parser.parse_args()
    transport, protocol = wire.factories(o)
    TThreadedServer(Processor(Handler(o.name)), Socket(o.host, o.port), transport, protocol, daemon=True).serve()


main()
