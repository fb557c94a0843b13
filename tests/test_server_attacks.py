"""The server against what FAULTS.md's rows 7, 10, 11 and 45 to 50 send it."""

from __future__ import annotations

import gzip
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from leadline.live.server.arriving import file_of_form
from leadline.live.server.guard import Access, host_name
from leadline.live.server.limits import Limits, RefusedError
from serving import Running, checkpoint, jpeg, opened, running

LIMITS = Limits(
    upload_bytes=1 << 20,
    bodies_bytes=4 << 20,
    pixels=200_000,
    connections=20,
    header_s=0.6,
    body_s=1.5,
    gap_s=0.6,
    linger_s=1.0,
)
POST = b"POST /v1/depth HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = checkpoint(tmp_path_factory.mktemp("served"))
    with running(opened([f"tiny={folder}"]), LIMITS) as here:
        yield here


@pytest.fixture(autouse=True)
def _still_well(server: Running) -> Iterator[None]:
    """After each attack the next honest request is answered, and nothing is held."""
    yield
    answer = post(server, jpeg())
    assert answer.status_code == 200
    state = server.app.state.leadline
    assert (state.waiting.taken, state.bodies.taken, state.streams.taken) == (0, 0, 0)


def post(server: Running, data: bytes, kind: str = "image/jpeg", **query: object) -> httpx.Response:
    return server.client.post("v1/depth", content=data, params=query, headers={"Content-Type": kind})


def raw(server: Running) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=10)


def rest(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(1 << 16):
        received += data
    return received


def said(answer: bytes) -> tuple[int, dict[str, str]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


# ---- Row 45: large uploads


def test_300_mb_are_refused_by_their_length_before_they_are_sent(server: Running) -> None:
    begun = time.monotonic()
    with raw(server) as connection:
        connection.sendall(POST + b"Content-Length: 314572800\r\n\r\n")
        status, body = said(rest(connection))
    assert status == 413
    assert "at most 1 MB" in body["error"]
    assert time.monotonic() - begun < 5


def test_300_mb_without_a_length_are_refused_while_they_arrive(server: Running) -> None:
    sent = 0
    with raw(server) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n" % 65536 + bytes(65536) + b"\r\n"
        try:
            while sent < 300 << 20:
                connection.sendall(chunk)
                sent += 65536
                connection.settimeout(0.001)
                try:
                    answer = connection.recv(1)
                    connection.settimeout(10)
                    answer += rest(connection)
                    break
                except TimeoutError:
                    connection.settimeout(10)
        except (ConnectionError, TimeoutError):
            pytest.fail("the answer was lost")
    assert said(answer)[0] == 413
    assert sent < 100 << 20  # refused early: what was under way in buffers is more than the limit


def test_a_client_that_sends_first_and_reads_later_still_reads_the_refusal(server: Running) -> None:
    answer = post(server, bytes(8 << 20))
    assert answer.status_code == 413
    assert answer.json()["error"]


def test_uploads_together_have_a_limit(server: Running) -> None:
    room = server.app.state.leadline.bodies
    assert room.take(LIMITS.bodies_bytes - 10)
    try:
        answer = post(server, jpeg())
    finally:
        room.give(LIMITS.bodies_bytes - 10)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


# ---- Row 46: slow senders, and slow receivers


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nHost: 127", b"GET /hea"])
def test_a_slow_header_is_given_up(server: Running, first: bytes) -> None:
    begun = time.monotonic()
    with raw(server) as connection:
        connection.sendall(first)
        status, body = said(rest(connection))
    assert status == 408
    assert "slow" in body["error"]
    assert 0.4 < time.monotonic() - begun < 5


def test_a_header_that_trickles_is_given_up(server: Running) -> None:
    begun, text = time.monotonic(), b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 1000
    with raw(server) as connection:
        connection.settimeout(0.1)
        answer = b""
        for byte in text:
            try:
                connection.sendall(bytes([byte]))
                answer = rest(connection)
                break
            except TimeoutError:
                continue
    assert said(answer)[0] == 408
    assert time.monotonic() - begun < 5


def test_a_second_header_on_a_kept_connection_is_timed_as_well(server: Running) -> None:
    with raw(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HT")
        assert said(rest(connection))[0] == 408


@pytest.mark.parametrize("gap", [0.1, 100.0], ids=["trickles", "stops"])
def test_a_slow_body_is_given_up(server: Running, gap: float) -> None:
    begun = time.monotonic()
    with raw(server) as connection:
        connection.sendall(POST + b"Content-Length: 5000\r\n\r\n")
        connection.settimeout(min(gap, 10))
        answer = b""
        while not answer and time.monotonic() - begun < 8:
            connection.sendall(b"x")
            try:
                answer = rest(connection)
            except TimeoutError:
                continue
    assert said(answer)[0] == 408
    assert time.monotonic() - begun < 6


def test_a_body_that_nobody_asked_for_does_not_keep_the_connection(server: Running) -> None:
    begun = time.monotonic()
    with raw(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\nx")
        assert said(rest(connection))[0] == 200
    assert time.monotonic() - begun < 5


def test_a_receiver_that_takes_nothing_is_given_up(server: Running) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((server.host, server.port))
        picture = jpeg(440, 440)
        head = POST.replace(b"/v1/depth", b"/v1/depth?format=npy") + b"Content-Length: %d\r\n\r\n" % len(picture)
        for _ in range(6):  # answers of 774 kB each, more than the kernel takes for us
            connection.sendall(head + picture)
        until = time.monotonic() + 15
        while server.server.server_state.connections:
            assert time.monotonic() < until, "the connection stays open"
            time.sleep(0.05)


def test_too_many_connections(server: Running) -> None:
    held = [raw(server) for _ in range(LIMITS.connections)]
    try:
        time.sleep(0.2)
        with raw(server) as one_more:
            status, body = said(rest(one_more))
        assert status == 503
        assert "too many connections" in body["error"]
    finally:
        for connection in held:
            connection.close()
    until = time.monotonic() + 10
    while server.server.server_state.connections and time.monotonic() < until:
        time.sleep(0.05)


def test_no_http_at_all(server: Running) -> None:
    with raw(server) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        status, body = said(rest(connection))
    assert status == 400
    assert body["error"]


# ---- Row 47: foreign Host and Origin


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "192.168.1.7", "[::2]", "a b", ""]
)
def test_a_foreign_host_is_refused(server: Running, host: str) -> None:
    for path in ("/", "/v1/models", "/assets/style.css", "/metrics"):
        with raw(server) as connection:
            head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            status, body = said(rest(connection))
        assert status == 403
        assert body["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:8000", "[::1]:8000"])
def test_our_own_names_are_not(server: Running, host: str) -> None:
    assert server.client.get("healthz", headers={"Host": host}).status_code == 200


def test_host_names() -> None:
    assert host_name("[::1]:80") == "::1"
    assert host_name("A.b:1") == "a.b"
    assert host_name("[::1") == ""


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "file://", "http://127.0.0.1:1", "http://["])
def test_a_foreign_origin_is_refused_for_requests_and_streams(server: Running, origin: str) -> None:
    answer = server.client.post("v1/depth", content=jpeg(), headers={"Origin": origin, "Content-Type": "image/jpeg"})
    assert answer.status_code == 403
    assert "may not ask" in answer.json()["error"]
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{server.port}/v1/stream", origin=origin)  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403


def test_the_own_origin_and_an_allowed_one_are_not(server: Running, tmp_path: Path) -> None:
    own = f"http://127.0.0.1:{server.port}"
    assert server.client.get("v1/models", headers={"Origin": own}).status_code == 200
    access = Access(origins=("https://pages.example",))
    with running(opened([f"tiny={checkpoint(tmp_path)}"]), access=access) as here:
        head = {"Origin": "https://pages.example"}
        answer = here.client.get("v1/models", headers=head)
        assert answer.headers["access-control-allow-origin"] == "https://pages.example"
        asked = {**head, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        assert here.client.options("v1/depth", headers=asked).status_code == 200
        assert here.client.get("v1/models", headers={"Origin": "https://other.example"}).status_code == 403


# ---- Row 48: names of files


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../../../../etc/passwd",
        "/assets/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/assets/..%5c..%5cetc%5cpasswd",
        "/assets//etc/passwd",
        "/assets/style.css%00.html",
        "/../../etc/passwd",
        "/assets/%2Fetc%2Fpasswd",
    ],
)
def test_no_address_reaches_a_file(server: Running, path: str) -> None:
    with raw(server) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = rest(connection)
    assert answer.split()[1] == b"404"
    assert b"root:" not in answer


def test_no_parameter_is_a_path(server: Running) -> None:
    for name in ("../../etc/passwd", "/etc/passwd", "leadline-s", "hf:owner/name", "random:leadline-s"):
        answer = post(server, jpeg(), model=name)
        assert answer.status_code == 404
        assert "No model" in answer.json()["error"]


def test_a_name_in_an_upload_is_not_used(server: Running, tmp_path: Path) -> None:
    target = tmp_path / "x"
    for name in ("../../etc/x", str(target), "a\0b", 'a"; filename="b'):
        answer = server.client.post("v1/depth", files={"picture": (name, jpeg(), "image/jpeg")})
        assert answer.status_code == 200
    head = {"Content-Type": "image/jpeg", "Content-Disposition": f'attachment; filename="{target}"'}
    assert server.client.post("v1/depth", content=jpeg(), headers=head).status_code == 200
    assert not list(tmp_path.iterdir())


# ---- Rows 10, 11 and 49: no pictures, and bombs


def png(width: int, height: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A grey PNG that says any size; its checksums are right."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    "data",
    [b"hello", bytes(1000), EPS, PDF, SVG, gzip.compress(bytes(100_000)), b"\x93NUMPY\x01\x00"],
    ids=["text", "zeros", "eps", "pdf", "svg", "gzip", "npy"],
)
def test_what_is_no_picture_is_415(server: Running, data: bytes) -> None:
    answer = post(server, data)
    assert answer.status_code == 415
    assert "the upload" in answer.json()["error"]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (cut(jpeg(200, 200)), "damaged"),
        (cut(jpeg(200, 200, form="PNG")), "truncated"),
        (png(20_000, 20_000, bytes(1000)), "400000000 pixels"),
        (png(0xFFFFFFF, 0xFFFFFFF, bytes(1000)), "pixels"),
        (png(100, 100, bytes(101 * 100), (b"zTXt", b"k\0\0" + zlib.compress(bytes(200 << 20)))), "cannot read"),
        (jpeg(500, 500), "500 x 500; at most 200000 pixels"),
        (jpeg(600, 500, form="GIF"), "500 x 600"),
        (jpeg(600, 500, form="TIFF", compression="tiff_adobe_deflate"), "500 x 600"),
        (jpeg(600, 500, form="WEBP"), "500 x 600"),
    ],
    ids=["empty", "cut-jpeg", "cut-png", "bomb-400-MP", "bomb-sides", "bomb-text", "large", "gif", "tiff", "webp"],
)
def test_pictures_that_cannot_be_taken_are_422(server: Running, data: bytes, words: str) -> None:
    answer = post(server, data)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


@pytest.mark.parametrize("kind", ["text/html", "application/json", "video/mp4", "multipart/mixed"])
def test_other_types_are_refused_before_the_body(server: Running, kind: str) -> None:
    assert post(server, jpeg(), kind).status_code == 415


def test_the_content_decides_not_the_type_it_claims(server: Running) -> None:
    assert post(server, jpeg(form="PNG"), "image/jpeg").status_code == 200
    assert post(server, jpeg(form="BMP"), "application/octet-stream").status_code == 200


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (7, 5)])
def test_odd_sizes_are_answered_at_their_own(server: Running, size: tuple[int, int]) -> None:
    facts = post(server, jpeg(*size, form="PNG"), format="json").json()
    assert (facts["height"], facts["width"]) == size


def test_an_animation_says_that_only_its_first_frame_counts(server: Running) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "green", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert "3 frames or pages" in post(server, buffer.getvalue(), "image/gif").headers["depth-notice"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; filename="a"\r\n\r\nno end'),
        ("multipart/form-data; boundary=" + "y" * 100, b"--y"),
    ],
)
def test_broken_forms(server: Running, kind: str, body: bytes) -> None:
    answer = post(server, body, kind)
    assert answer.status_code in (415, 422)
    assert answer.json()["error"]


def test_a_form_keeps_every_byte_of_its_file() -> None:
    data = bytes(range(256)) + b"\r\n--xx\r\n--\n\r"
    body = b'--x y\r\nA: b\r\n\r\n1\r\n--x y\r\nContent-Disposition: form-data; filename="f"\r\n\r\n' + data
    assert file_of_form(body + b"\r\n--x y--\r\n", b"x y") == data
    with pytest.raises(RefusedError, match="no file"):
        file_of_form(b"", b"x")


def test_a_frame_that_is_too_large_ends_the_stream(server: Running) -> None:
    from websockets.exceptions import ConnectionClosed

    with connect(f"ws://127.0.0.1:{server.port}/v1/stream") as stream:
        stream.send(bytes((1 << 20) + 1))
        with pytest.raises(ConnectionClosed) as end:
            stream.recv(10)
    assert end.value.rcvd is not None
    assert end.value.rcvd.code == 1009
    time.sleep(0.2)


# ---- Row 50: those who leave


def test_a_request_whose_sender_left_is_dropped(server: Running) -> None:
    opened_model = next(iter(server.app.state.leadline.models.served["tiny"].engines.values()))
    session, runs = opened_model.thread.session, []
    quick = session._infer
    session._infer = lambda values: (time.sleep(0.4), runs.append(1), quick(values))[2]  # type: ignore[method-assign]
    try:
        for _ in range(6):
            with raw(server) as connection:
                picture = jpeg()
                connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(picture) + picture)
                time.sleep(0.05)
        time.sleep(1.2)
        assert len(runs) <= 3  # not all six: those that waited were taken out of the queue
    finally:
        session._infer = quick  # type: ignore[method-assign]


def test_a_fault_of_the_engine_is_500_without_details(server: Running) -> None:
    opened_model = next(iter(server.app.state.leadline.models.served["tiny"].engines.values()))
    session, quick = opened_model.thread.session, opened_model.thread.session._infer
    session._infer = lambda values: quick(values) * float("nan")  # type: ignore[method-assign]
    try:
        answer = post(server, jpeg())
    finally:
        session._infer = quick  # type: ignore[method-assign]
    assert answer.status_code == 500
    assert "NaN or infinity in the output of" in answer.json()["error"]
