"""Fake OpenTelemetry collector: an HTTP server on loopback that decodes the spans sent to it by OTLP over HTTP.

with Collector() as collector:
    ...  # a process with ADIUVA_TRACES_ENDPOINT=collector.url
    spans = collector.wait_for(lambda spans: any(span.name == "turn" for span in spans))
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

WAIT_S = 30.0


class Collector:
    def __init__(self) -> None:
        self.bodies: list[bytes] = []  # as they were sent, unpacked
        self.spans: list[Any] = []
        self._changed = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector._take(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.bodies.append(body)
            self.spans += [
                span
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]
            self._changed.notify_all()

    def wait_for(self, enough: Callable[[list[Any]], bool]) -> list[Any]:
        """All spans, once they are enough."""
        with self._changed:
            assert self._changed.wait_for(lambda: enough(self.spans), WAIT_S), [
                span.name for span in self.spans
            ]
            return list(self.spans)
