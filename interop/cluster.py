"""Three real nodes on loopback, and a load balancer for clients that know only one address."""

import json
import os
import selectors
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

HOST = "127.0.0.1"
# Larger than the default, so that a payload of 1 MiB fits with its header.
PACKET_BYTES_MAX = 2 * 1024 * 1024
SOON_S = 60


class Trouble(Exception):
    """Something did not happen; the text says what."""


def wait(what, condition, bound_s=SOON_S):
    """Looks until `condition` gives something, and returns that."""
    end = time.monotonic() + bound_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Trouble(f"not within {bound_s} s: {what}")
        time.sleep(0.01)


def free_ports(count):
    """Ports that nobody listens on now."""
    held = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Certificates:
    """An authority and one certificate for the loopback address, made by the `openssl` command."""

    def __init__(self, folder):
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        names, request, ca_key = folder / "names", folder / "request.pem", folder / "ca-key.pem"
        names.write_text(f"subjectAltName=IP:{HOST},DNS:localhost\nbasicConstraints=CA:FALSE\n")
        ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        for arguments in (
            ["req", "-x509", *ec, "-keyout", ca_key, "-out", self.ca, "-days", "2", "-subj", "/CN=interop authority"],
            ["req", *ec, "-keyout", self.key, "-out", request, "-subj", "/CN=localhost"],
            ["x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial",
             "-days", "2", "-extfile", names, "-out", self.cert],
        ):
            subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Node:
    """One broker process and its ports."""

    def __init__(self, broker, folder, name, certificates):
        self.broker, self.name, self.folder = broker, name, folder
        self.ports = dict(zip(("tcp", "peer", "admin", "tls", "ws", "wss"), free_ports(6)))
        self.certificates = certificates
        self.process = None

    def start(self, *how):
        at = {key: f"{HOST}:{port}" for key, port in self.ports.items()}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("QUORATE_")}
        environment["QUORATE_PACKET_BYTES_MAX"] = str(PACKET_BYTES_MAX)
        pair = f"cert={self.certificates.cert}&key={self.certificates.key}"
        environment["QUORATE_LISTENERS"] = ",".join(
            (f"tls://{at['tls']}?{pair}", f"ws://{at['ws']}/mqtt", f"wss://{at['wss']}/mqtt?{pair}"))
        arguments = ["server", "--exit-with-parent", "--name", self.name, "--data-dir", self.folder / self.name,
                     "--mqtt", at["tcp"], "--peer", at["peer"], "--admin", at["admin"], *how]
        with open(self.folder / f"{self.name}.log", "ab") as log:
            # The pipe ends with this process, however that ends, and the node with the pipe.
            self.process = subprocess.Popen([self.broker, *map(str, arguments)], env=environment,
                                            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)

    def ask(self, path):
        """What the administration answers, or nothing while it does not or says no."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.ports['admin']}{path}", timeout=2) as answer:
                return answer.read()
        except (OSError, urllib.error.URLError):
            return None

    def view(self):
        """The cluster as this node sees it, or nothing."""
        view = self.ask("/api/v1/cluster") if self.is_running else None
        return json.loads(view) if view else None

    def is_ready(self):
        return self.is_running and self.ask("/health/ready") is not None

    @property
    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process = None

    def log_tail(self):
        log = self.folder / f"{self.name}.log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else ""


class Cluster:
    """Three nodes; `n1` makes the cluster, the others join it."""

    def __init__(self, broker, folder):
        if not shutil.which("openssl"):
            raise Trouble("no `openssl` command here, which makes the certificates: install the package openssl")
        self.certificates = Certificates(folder)
        self.nodes = [Node(broker, folder, f"n{n}", self.certificates) for n in (1, 2, 3)]
        try:
            self.nodes[0].start("--bootstrap")
            for node in self.nodes[1:]:
                wait("the first node is ready", self.nodes[0].is_ready)
                node.start("--join", f"{HOST}:{self.nodes[0].ports['admin']}")
            self.wait_whole()
        except BaseException:
            self.stop()
            raise

    def wait_whole(self):
        """Waits until all nodes vote, are up and welcome clients."""
        def is_whole():
            views = [node.view() for node in self.nodes]
            if not all(node.is_ready() for node in self.nodes) or not all(views):
                return False
            votes = [[n for n in v["nodes"] if n["role"] != "learner" and n["state"] == "up"] for v in views]
            return all(view["leader"] and len(voters) == 3 for view, voters in zip(views, votes))
        wait("three voters that are up", is_whole, 90)

    def leader(self):
        """The node that leads."""
        def look():
            for node in self.nodes:
                view = node.view()
                if view and view["leader"]:
                    name = next((n["name"] for n in view["nodes"] if n["id"] == view["leader"]), None)
                    return next((n for n in self.nodes if n.name == name and n.is_running), None)
            return None
        return wait("a leader", look)

    def mend(self):
        """Starts what is not running."""
        dead = [node for node in self.nodes if not node.is_running]
        for node in dead:
            node.start()
        if dead:
            self.wait_whole()

    def stop(self):
        for node in self.nodes:
            node.kill()


class Relay:
    """One address in front of the nodes: a new connection goes to the first of them that takes it."""

    def __init__(self, ports):
        self.ports = ports
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        for port in self.ports:
            try:
                node = socket.create_connection((HOST, port), timeout=2)
            except OSError:
                continue
            node.settimeout(None)
            with client, node, selectors.DefaultSelector() as ready:
                ready.register(client, selectors.EVENT_READ, node)
                ready.register(node, selectors.EVENT_READ, client)
                try:
                    while True:
                        for key, _ in ready.select():
                            some = key.fileobj.recv(65536)
                            if not some:
                                return
                            key.data.sendall(some)
                except OSError:
                    return
        client.close()

    def close(self):
        self.listener.close()
