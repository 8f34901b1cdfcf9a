"""An Apache Thrift client that does what lines of JSON on its standard input
say, and answers with lines of JSON: the same as those of the client in Go.
"""

import argparse
import base64
import json
import sys
import threading
import time

from thrift.protocol.TMultiplexedProtocol import TMultiplexedProtocol
from thrift.Thrift import TApplicationException
from thrift.transport.TSocket import TSocket

from echo import Echo, Unserved
from echo.ttypes import Refusal
import wire


class Connection:
    """Is used by one call at a time."""

    def __init__(self, o):
        host, port = o.addr.split(":")
        transports, protocols = wire.factories(o)
        self.header = o.transport == "header"
        self.socket = TSocket(host, int(port))
        self.socket.setTimeout(o.timeout)
        self.protocol = protocols.getProtocol(transports.getTransport(self.socket))
        self.socket.open()

    def invoke(self, cmd):
        """Makes the call with the generated client."""
        protocol = self.protocol
        if self.header:
            for k, v in cmd.get("attachments", {}).items():
                protocol.set_header(k.encode(), v.encode())
        if cmd.get("interface"):
            protocol = TMultiplexedProtocol(protocol, cmd["interface"])
        method, args = cmd["method"], cmd.get("args", [])
        if method == "blob":
            args = [base64.b64decode(args[0])]
        service = Unserved if method == "noSuch" else Echo
        value = getattr(service.Client(protocol), method)(*args)
        return base64.b64encode(value).decode() if method == "blob" else value

    def headers(self):
        """Gives the headers of the last answer."""
        return {k.decode(): v.decode() for k, v in self.protocol.get_headers().items()} if self.header else {}


class Client:
    def __init__(self, o):
        self.o = o
        self.lock = threading.Lock()
        self.idle = []

    def print(self, v):
        with self.lock:
            sys.stdout.write(json.dumps(v) + "\n")
            sys.stdout.flush()

    def run(self, cmd):
        """Carries one command out."""
        duration = cmd.get("duration_ms", 0) / 1000
        count = cmd.get("count", 0) if duration else max(cmd.get("count", 0), 1)
        deadline = time.monotonic() + duration
        total = {"id": cmd["id"], "calls": 0, "values": {}, "errors": {}, "latency_us": {"max": 0}}
        begun, lock = 0, threading.Lock()

        def caller():
            nonlocal begun
            while True:
                with lock:
                    begun += 1
                    if count and begun > count or duration and time.monotonic() > deadline:
                        return
                a = self.call(cmd)
                if not cmd.get("summary"):
                    self.print(a)
                    continue
                with lock:
                    total["calls"] += 1
                    where, key = ("errors", a["error"]) if "error" in a else ("values", str(a["value"]))
                    total[where][key] = total[where].get(key, 0) + 1
                    total["latency_us"]["max"] = max(total["latency_us"]["max"], a["latency_us"])

        callers = [threading.Thread(target=caller) for _ in range(max(cmd.get("concurrency", 0), 1))]
        for t in callers:
            t.start()
        for t in callers:
            t.join()
        if cmd.get("summary"):
            self.print(total)

    def connect(self, fresh):
        """Gives the connection that was free last, or a new one."""
        with self.lock:
            if self.idle and not fresh:
                return self.idle.pop()
        return Connection(self.o)

    def call(self, cmd):
        """Makes one call."""
        start = time.monotonic()
        answer = {"id": cmd["id"], "value": None}
        close = cmd.get("close", False)
        connection, broken = None, False
        try:
            connection = self.connect(close)
            connection.socket.setTimeout(cmd.get("timeout_ms") or self.o.timeout)
            start = time.monotonic()
            answer["value"] = connection.invoke(cmd)
        except Refusal as e:
            answer["error"], answer["error_type"] = "%s (code %d)" % (e.reason, e.code), "Refusal"
        except TApplicationException as e:
            answer["error"], answer["error_type"] = e.message or str(e), "TApplicationException %d" % e.type
        except Exception as e:
            answer["error"], answer["error_type"], broken = str(e) or repr(e), "transport", True
        answer["latency_us"] = int((time.monotonic() - start) * 1e6)
        if connection:
            answer["attachments"] = connection.headers()
            if broken or close:
                connection.socket.close()
            else:
                with self.lock:
                    self.idle.append(connection)
        return answer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-addr", help="host:port to call")
    parser.add_argument("-timeout", type=int, default=3000, help="of a call in milliseconds, unless its command says otherwise")
    wire.add_flags(parser)
    client = Client(parser.parse_args())
    for line in sys.stdin:
        threading.Thread(target=client.run, args=(json.loads(line),)).start()


main()
