#!/usr/bin/env python3
"""Follows docs/OPERATIONS.md from an empty directory, with the page's own text: init, doctor, a process in Python that
attaches, nginx, HAProxy and Caddy in front with the page's files, Prometheus and the node exporter. Everything talks to
loopback and ends by itself. What is not installed is named and left out.

usage: follow.py [--quick] [PROGRAM]
"""

import base64
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QUICK = "--quick" in sys.argv
PROGRAMS = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
PROGRAM = os.path.abspath(PROGRAMS[0] if PROGRAMS else os.path.join(ROOT, "target/release/pushring"))
SILENCE_S = 3 if QUICK else 130
PATIENCE_S = 30
NAME = "example.com"
ECHO = "/room:python:sys/"

# Its port is one for the whole machine: another daemon may have it.
os.environ["PUSHRING_ADMIN_LISTEN"] = "off"

started = []
failures = []


def check(what, holds, seen=""):
    print(f"{'ok' if holds else 'FAILED'}: {what}{'' if holds else f': {seen}'}", flush=True)
    if not holds:
        failures.append(what)


def page(language):
    text = open(os.path.join(ROOT, "docs/OPERATIONS.md")).read()
    return re.findall(rf"```{language}\n(.*?)\n```", text, re.S)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def start(*command, **options):
    process = subprocess.Popen(command, **options)
    started.append(process)
    return process


def wait_for(port):
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nobody listens on port {port}")


class Daemon:
    """pushring serve, with the settings of `init` and those that the page gives for proxies."""

    def __init__(self, directory):
        self.directory, self.port = directory, free_port()
        self.settings = os.path.join(directory, "pushring.toml")
        done = run(PROGRAM, "init", "--dir", directory, "--listen", f"127.0.0.1:{self.port}")
        check("init writes settings, a secret and a unit", done.returncode == 0 and done.stdout.count("wrote ") >= 3, done)
        mode = os.stat(os.path.join(directory, "jwt-secret")).st_mode & 0o777
        check("the secret is for its owner alone", mode == 0o600, oct(mode))
        # As an operator does: behind what init has written, the page's lines that are not there yet.
        # Each reader's own: where it listens, and an authority, which is nowhere here.
        blocks = [block for block in page("toml") if "auth_jwks_url" not in block]
        lines = [line for block in blocks for line in block.splitlines() if not line.startswith(("listen", "tls_", "proxy_protocol"))]
        with open(self.settings, "a") as settings:
            settings.write("\n" + "\n".join(lines) + "\nmetrics = true\n")
        self.begin()

    def begin(self):
        self.process = start(PROGRAM, "serve", "--config", self.settings, stdout=subprocess.PIPE, text=True,
                             stderr=open(os.path.join(self.directory, "log"), "a"))
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), open(os.path.join(self.directory, "log")).read()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


class Socket:
    """A WebSocket client over TLS, for one message at a time."""

    def __init__(self, port, path, authority, timeout=PATIENCE_S):
        context = ssl.create_default_context(cafile=authority)
        context.set_alpn_protocols(["http/1.1"])
        plain = socket.create_connection(("127.0.0.1", port), timeout)
        self.stream = context.wrap_socket(plain, server_hostname=NAME)
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall((f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        self.bytes = b""
        while b"\r\n\r\n" not in self.bytes:
            self.more()
        head, _, self.bytes = self.bytes.partition(b"\r\n\r\n")
        self.status = int(head.split()[1])

    def more(self):
        chunk = self.stream.recv(65536)
        if not chunk:
            raise EOFError("closed")
        self.bytes += chunk

    def take(self, count):
        while len(self.bytes) < count:
            self.more()
        taken, self.bytes = self.bytes[:count], self.bytes[count:]
        return taken

    def send(self, opcode, payload):
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.stream.sendall(struct.pack(">BB", 0x80 | opcode, 0x80 | len(payload)) + mask + masked)

    def receive(self, until_ping=False):
        """The next message; pings are answered, and end the wait where that is asked for."""
        while True:
            first, second = self.take(2)
            length = second & 0x7F
            if length == 126:
                length = struct.unpack(">H", self.take(2))[0]
            payload = self.take(length)
            if first & 0x0F == 9:
                self.send(10, payload)
                if until_ping:
                    return None
            elif first & 0x0F in (1, 2):
                return payload
            else:
                raise EOFError(f"frame {first:#x}")

    def echoes(self, text):
        self.send(1, text)
        return self.receive() == text


def certificate(directory):
    paths = [os.path.join(directory, name) for name in ("example.com.pem", "example.com.key")]
    made = run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}",
               "-addext", f"subjectAltName=DNS:{NAME}", "-out", paths[0], "-keyout", paths[1])
    assert made.returncode == 0, made.stderr
    both = os.path.join(directory, "both.pem")
    with open(both, "w") as out:
        for path in paths:
            out.write(open(path).read())
    return paths[0], paths[1], both


def nginx(directory, port, daemon, certificates):
    # Two addresses of one daemon, as the page has it for many channels; here the second answers never.
    one = "        server 127.0.0.1:8080 max_fails=0;\n"
    assert one in page("nginx")[0]
    text = page("nginx")[0].replace(one, one + one.replace("127.0.0.1", "127.0.0.2")).replace(":8080", f":{daemon.port}").replace("listen 443", f"listen 127.0.0.1:{port}")
    text = text.replace("/etc/nginx/example.com.pem", certificates[0]).replace("/etc/nginx/example.com.key", certificates[1])
    config = os.path.join(directory, "nginx.conf")
    log = os.path.join(directory, "nginx.log")
    with open(config, "w") as out:
        out.write(f"daemon off; pid {directory}/nginx.pid; error_log {log};\n" + text.replace("http {", "http {\n    access_log off;", 1))
    return ["nginx", "-e", log, "-c", config]


def haproxy(directory, port, daemon, certificates):
    text = page("haproxy")[0].replace("127.0.0.1:8080", f"127.0.0.1:{daemon.port}").replace("bind :443", f"bind 127.0.0.1:{port}")
    config = os.path.join(directory, "haproxy.cfg")
    with open(config, "w") as out:
        out.write(text.replace("/etc/haproxy/example.com.pem", certificates[2]) + "\n")
    return ["haproxy", "-db", "-f", config]


def caddy(directory, port, daemon, certificates):
    text = page("caddy")[0].replace("127.0.0.1:8080", f"127.0.0.1:{daemon.port}")
    text = text.replace(f"{NAME} {{", f"https://{NAME}:{port} {{\n    bind 127.0.0.1\n    tls {certificates[0]} {certificates[1]}", 1)
    config = os.path.join(directory, "Caddyfile")
    with open(config, "w") as out:
        out.write("{\n    admin off\n    auto_https disable_redirects\n}\n" + text + "\n")
    return ["caddy", "run", "--config", config, "--adapter", "caddyfile"]


def curl(port, authority, *flags, path="/nothing"):
    done = run("curl", "--silent", "--output", "/dev/null", "--cacert", authority, "--write-out", "%{http_version} %{http_code}",
               "--resolve", f"{NAME}:{port}:127.0.0.1", *flags, f"https://{NAME}:{port}{path}")
    return done.stdout


def behind(name, port, authority, directory):
    """What works behind a proxy while the daemon runs."""
    client = Socket(port, ECHO, authority)
    check(f"{name}: the upgrade passes", client.status == 101, client.status)
    check(f"{name}: messages pass both ways", client.echoes(b"hello"))
    check(f"{name}: HTTP/2 in front", curl(port, authority, "--http2") == "2 404", curl(port, authority, "--http2"))
    upload = os.path.join(directory, "upload")
    for version in ("--http1.1", "--http2"):
        told = curl(port, authority, version, "--header", "Expect:", "--data-binary", f"@{upload}")
        check(f"{name}: an upload of 12 MB is refused with its own status, {version}", told.endswith(" 404"), told)
    return client


def keep_alive(name, client):
    """A channel on which nothing is said for a while is kept open by pings."""
    until = time.monotonic() + SILENCE_S
    try:
        while time.monotonic() < until:
            client.stream.settimeout(max(until - time.monotonic(), 0.05))
            try:
                client.receive(until_ping=True)
            except (socket.timeout, TimeoutError):
                break
        client.stream.settimeout(PATIENCE_S)
        check(f"{name}: silent for {SILENCE_S} s, and open", client.echoes(b"again"))
    except (OSError, EOFError) as error:
        check(f"{name}: silent for {SILENCE_S} s, and open", False, repr(error))


def after_restart(proxies, daemon, authority):
    """From the moment when the daemon listens again no proxy answers for it."""
    for name, port in proxies.items():
        curl(port, authority)
    check("the daemon stops gently", daemon.end() == 0)
    for name, port in proxies.items():
        told = curl(port, authority)
        check(f"{name}: without the daemon it answers by itself", told[-3:] in ("502", "503", "504"), told)
    daemon.begin()
    for name, port in proxies.items():
        told = [curl(port, authority)[-3:] for _ in range(20)]
        check(f"{name}: no 502 once it is back", set(told) == {"404"}, told)


def own_tls(directory):
    """TLS without a proxy, with the page's lines: served, sent on to, and renewed while clients stay."""
    directory = os.path.join(directory, "own")
    os.mkdir(directory)
    chain, key, _ = certificate(directory)
    (text,) = [block for block in page("toml") if block.startswith("tls_listen")]
    port, plain = free_port(), free_port()
    text = text.replace("0.0.0.0:443", f"127.0.0.1:{port}")
    text = text.replace("/etc/pushring/example.com.pem", chain).replace("/etc/pushring/example.com.key", key)
    settings = os.path.join(directory, "tls.toml")
    with open(settings, "w") as out:
        out.write(f'listen = "127.0.0.1:{plain}"\nhosts = ["{NAME}"]\ncontrol = "off"\ntls_redirect = "on"\n{text}\n')
    found = run(PROGRAM, "doctor", "--config", settings, "--json").stdout
    check("own TLS: the doctor has looked at the certificate", f"{chain} ({NAME}) expires in" in found, found)
    process = start(PROGRAM, "demo", "--config", settings, stdout=subprocess.PIPE, text=True,
                    stderr=open(os.path.join(directory, "log"), "w"))
    doors = [process.stdout.readline() for _ in range(2)]
    check("own TLS: both doors are told", doors[1] == f"listening on https://127.0.0.1:{port}\n", doors)
    client = Socket(port, "/echo:pushring:sys/", chain)
    check("own TLS: the upgrade passes", client.status == 101, client.status)
    check("own TLS: messages pass both ways", client.echoes(b"hello"))
    check("own TLS: HTTP/1.1 alone", curl(port, chain, "--http2") == "1.1 404", curl(port, chain, "--http2"))
    told = run("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code} %{redirect_url}", "--resolve",
               f"{NAME}:{plain}:127.0.0.1", f"http://{NAME}:{plain}/x").stdout
    check("own TLS: who comes without it is sent on", told == f"308 https://{NAME}:{port}/x", told)
    certificate(directory)
    until, renewed = time.monotonic() + PATIENCE_S, None
    while renewed is None and time.monotonic() < until:
        try:
            renewed = Socket(port, "/echo:pushring:sys/", chain)
        except ssl.SSLError:
            time.sleep(0.2)
    check("own TLS: a renewed certificate is shown by itself", renewed is not None and renewed.echoes(b"new"))
    check("own TLS: and who was there stays", client.echoes(b"old"))
    process.send_signal(signal.SIGTERM)
    check("own TLS: it stops gently", process.wait(PATIENCE_S) == 0)


def metrics(directory, daemon):
    text = run(PROGRAM, "metrics", "--config", daemon.settings).stdout
    if shutil.which("promtool"):
        checked = run("promtool", "check", "metrics", input=text)
        check("promtool finds nothing wrong", checked.returncode == 0 and not checked.stderr, checked.stderr + checked.stdout)
    if shutil.which("prometheus-node-exporter"):
        port, folder = free_port(), os.path.join(directory, "textfile")
        os.mkdir(folder)
        with open(os.path.join(folder, "pushring.prom"), "w") as out:
            out.write(text)
        start("prometheus-node-exporter", "--collector.disable-defaults", "--collector.textfile",
              f"--collector.textfile.directory={folder}", f"--web.listen-address=127.0.0.1:{port}", stderr=subprocess.DEVNULL)
        wait_for(port)
        told = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        lines = sum(line.startswith("pushring_") for line in told.splitlines())
        check("the node exporter passes them on", lines > 50 and "node_textfile_scrape_error 0" in told, lines)
    if shutil.which("prometheus"):
        port, config = free_port(), os.path.join(directory, "prometheus.yml")
        with open(config, "w") as out:
            out.write("scrape_configs:\n  - job_name: pushring\n    scrape_interval: 1s\n    metrics_path: /metrics:pushring:sys/\n"
                      f"    static_configs:\n      - targets: ['127.0.0.1:{daemon.port}']\n")
        start("prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address=127.0.0.1:{port}",
              stderr=subprocess.DEVNULL)
        wait_for(port)
        until, told = time.monotonic() + PATIENCE_S, ""
        while time.monotonic() < until and '"value"' not in told:
            time.sleep(0.5)
            query = f"http://127.0.0.1:{port}/api/v1/query?query=pushring_opened_total"
            told = urllib.request.urlopen(query, timeout=10).read().decode()
        check("Prometheus scrapes them", '"value"' in told, told)


def main():
    directory = tempfile.mkdtemp(prefix="pushring-operations-")
    # nginx' workers are another user.
    os.chmod(directory, 0o755)
    daemon = Daemon(directory)
    found = run(PROGRAM, "doctor", "--config", daemon.settings, "--json").stdout
    problems = [line for line in found.splitlines() if '"level":"problem"' in line]
    check("the doctor finds no problem", found and not problems, problems or found)
    link = os.path.join(directory, "link.sock")
    start(sys.executable, os.path.join(ROOT, "examples/link_client.py"), link, stdout=subprocess.DEVNULL)
    until = time.monotonic() + PATIENCE_S
    while "room:python:sys" not in open(os.path.join(directory, "log")).read() and time.monotonic() < until:
        time.sleep(0.1)
    check("a process in Python attaches", "room:python:sys" in open(os.path.join(directory, "log")).read())
    metrics(directory, daemon)
    own_tls(directory)

    certificates = certificate(directory)
    with open(os.path.join(directory, "upload"), "wb") as out:
        out.write(os.urandom(1 << 20) * 12)
    proxies, clients = {}, {}
    for name, make in (("nginx", nginx), ("haproxy", haproxy), ("caddy", caddy)):
        if not shutil.which(name):
            print(f"NOT RUN: there is no {name}")
            continue
        port = free_port()
        start(*make(directory, port, daemon, certificates), stdout=subprocess.DEVNULL, stderr=open(f"{directory}/{name}.err", "w"),
              env={**os.environ, "HOME": directory, "XDG_DATA_HOME": directory, "XDG_CONFIG_HOME": directory})
        wait_for(port)
        proxies[name] = port
        try:
            clients[name] = behind(name, port, certificates[0], directory)
        except (OSError, EOFError) as error:
            check(f"{name}: the upgrade passes", False, repr(error))
    waiting = [threading.Thread(target=keep_alive, args=pair) for pair in clients.items()]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    after_restart(proxies, daemon, certificates[0])
    check("and stops gently", daemon.end() == 0)
    return directory


if __name__ == "__main__":
    directory = None
    try:
        directory = main()
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
    if not failures:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"failures: {len(failures)}")
    sys.exit(bool(failures))
