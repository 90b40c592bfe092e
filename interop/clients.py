"""The clients as the scenarios see them: connect, subscribe, publish, and what they got.

paho-mqtt and MQTT.js run in processes of their own under remote control (`paho_client.py`, `mqttjs_client.mjs`); of
mosquitto the commands themselves run, one `mosquitto_sub` for what a client receives and one `mosquitto_pub -l` for
each topic that it publishes to.
"""

import hashlib
import json
import os
import re
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

import payload
from cluster import HOST, Relay, Trouble, wait

HERE = Path(__file__).parent


@dataclass
class Plan:
    """Who connects, and how."""
    id: str
    version: str
    transport: str
    # Ports of the nodes that speak this transport, the first to be connected to first.
    ports: list
    clean: bool = False
    will: dict | None = None
    inflight: int = 20
    reconnect_s: int = 1
    ca: str | None = None


@dataclass
class Seen:
    """What a client has told so far."""
    connected: list = field(default_factory=list)
    subscribed: list = field(default_factory=list)
    messages: list = field(default_factory=list)
    acknowledged: int = 0
    disconnected: int = 0
    errors: list = field(default_factory=list)


class Client:
    """What all have in common: waiting for what they have seen."""

    # Whether it tells the Session Present flag and the DUP flag.
    tells_present = True

    def __init__(self, plan):
        self.plan, self.seen = plan, Seen()
        self.processes = []

    def _spawn(self, command, environment=None):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, bufsize=1, cwd=HERE, env={**os.environ, **(environment or {})})
        self.processes.append(process)
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def _read(self, process):
        for line in process.stdout:
            self._line(process, line.rstrip("\n"))

    def _wait(self, what, condition):
        try:
            return wait(f"{self.plan.id}: {what}", condition)
        except Trouble as trouble:
            raise Trouble(f"{trouble}; it has seen {self.describe()}") from None

    def describe(self):
        s = self.seen
        return (f"{len(s.connected)} connections, {len(s.messages)} messages, {s.acknowledged} acknowledgements"
                + (f", errors {s.errors[:3]}" if s.errors else ""))

    def _subscribed(self, before, filters):
        self._wait("SUBACK", lambda: len(self.seen.subscribed) > before)
        for filter, code in zip(filters, self.seen.subscribed[-1], strict=True):
            if code >= 0x80:
                raise Trouble(f"the subscription to {filter} was refused with {code:#04x}")
        return self

    def wait_connected(self, times=1):
        self._wait(f"connection {times}", lambda: len(self.seen.connected) >= times)
        return self.seen.connected[times - 1]

    def wait_messages(self, count):
        self._wait(f"{count} messages", lambda: len(self.seen.messages) >= count)
        return self.texts()

    def wait_text(self, text):
        """Waits for a message that comes after all that count."""
        self._wait(f"the message {text}", lambda: text in self.texts())

    def wait_acknowledged(self, count):
        self._wait(f"{count} acknowledgements", lambda: self.seen.acknowledged >= count)

    def texts(self):
        """Payloads in the order of their coming."""
        return [m["text"] for m in list(self.seen.messages)]

    def die(self):
        """Ends as if its power were cut."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.processes = []


class Remote(Client):
    """A client library under remote control."""

    def __init__(self, plan, command, environment=None):
        super().__init__(plan)
        self.has_ended = False
        self.process = self._spawn(command, environment)

    def _line(self, _process, line):
        try:
            event = json.loads(line)
        except ValueError:
            self.seen.errors.append(line)
            return
        match event.pop("event"):
            case "connected":
                self.seen.connected.append(event)
            case "disconnected":
                self.seen.disconnected += 1
            case "subscribed":
                self.seen.subscribed.append(event["codes"])
            case "acknowledged":
                self.seen.acknowledged += 1
            case "message":
                self.seen.messages.append(event)
            case "ended":
                self.has_ended = True
            case _:
                self.seen.errors.append(json.dumps(event))

    def _tell(self, do, **what):
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()

    def connect(self):
        p = self.plan
        self._tell("connect", id=p.id, version=p.version, transport=p.transport, clean=p.clean, will=p.will,
                   servers=[[HOST, port] for port in p.ports], inflight=p.inflight, reconnect_s=p.reconnect_s, ca=p.ca)
        self.wait_connected()
        return self

    def subscribe(self, qos, *filters):
        before = len(self.seen.subscribed)
        self._tell("subscribe", filters=filters, qos=qos)
        return self._subscribed(before, filters)

    def publish(self, topic, text, qos, retain=False, size=None):
        self._tell("publish", topic=topic, text=text, size=size, qos=qos, retain=retain)

    def disconnect(self):
        self._tell("disconnect")
        self._wait("its end", lambda: self.has_ended)
        self.die()


class Mosquitto(Client):
    """mosquitto_sub and mosquitto_pub; both reconnect by themselves, behind one address."""

    tells_present = False
    VERSIONS = {"3.1": "mqttv31", "3.1.1": "mqttv311", "5": "mqttv5"}

    def __init__(self, plan):
        super().__init__(plan)
        self.relay = Relay(plan.ports)
        self.publishers = {}

    def _command(self, program, id):
        p = self.plan
        command = ["stdbuf", "-oL", program, "-h", HOST, "-p", str(self.relay.port), "-V", self.VERSIONS[p.version],
                   "-i", id, "-k", "20", "-d"]
        if p.ca:
            command += ["--cafile", p.ca]
        if p.version == "5":
            # After a reconnect libmosquitto counts what it had of an unfinished QoS 2 message twice against its
            # Receive Maximum of 20, and ends with a protocol error when the broker uses all of it.
            command += ["-D", "connect", "receive-maximum", "1000"]
        if will := p.will:
            command += ["--will-topic", will["topic"], "--will-payload", will["text"], "--will-qos", str(will["qos"])]
        if not p.clean:
            command += ["-c"] + (["-x", "3600"] if p.version == "5" else [])
        return command

    def _line(self, process, line):
        if line.startswith("{"):
            m = json.loads(line)
            text = (m["payload"] or "").encode()
            self.seen.messages.append({"topic": m["topic"], "qos": m["qos"], "retain": bool(m["retain"]),
                                       "text": text.decode() if len(text) <= 256 else None, "size": len(text),
                                       "sha256": hashlib.sha256(text).hexdigest()})
        elif "received CONNACK (0)" in line and process is self.processes[0]:
            self.seen.connected.append({"present": None})
        elif "received CONNACK" in line and "CONNACK (0)" not in line:
            self.seen.errors.append(line)
        elif found := re.match(r"Subscribed \(mid: \d+\): ([\d, ]+)", line):
            self.seen.subscribed.append([int(code) for code in found[1].split(",")])
        elif re.search(r"received (PUBACK|PUBCOMP) ", line):
            # Of mosquitto_pub: mosquitto_sub answers, it does not get these.
            self.seen.acknowledged += 1
        elif re.match("Error|Unable|Connection error", line):
            self.seen.errors.append(line)

    def connect(self):
        # mosquitto_sub connects when it has something to subscribe to.
        return self

    def subscribe(self, qos, *filters):
        command = self._command("mosquitto_sub", self.plan.id) + ["-q", str(qos), "-F", "%j"]
        for filter in filters:
            command += ["-t", filter]
        if self.processes:
            raise Trouble("mosquitto_sub subscribes once, before anything else")
        self._spawn(command)
        self.wait_connected()
        return self._subscribed(0, filters)

    def publish(self, topic, text, qos, retain=False, size=None):
        key = (topic, qos, retain)
        if key not in self.publishers:
            command = self._command("mosquitto_pub", f"{self.plan.id}p{len(self.publishers)}")
            command += ["-t", topic, "-q", str(qos), "-l", "-M", str(self.plan.inflight)] + (["-r"] if retain else [])
            if not self.processes:
                self.processes.append(subprocess.Popen(["true"]))  # no mosquitto_sub here
            self.publishers[key] = self._spawn(command)
        publisher = self.publishers[key]
        publisher.stdin.write(payload.of(text, size).decode() + "\n")
        publisher.stdin.flush()

    def disconnect(self):
        for publisher in self.publishers.values():
            publisher.stdin.close()
        for publisher in self.publishers.values():
            publisher.wait(60)
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
            process.wait(60)
        self.die()

    def die(self):
        super().die()
        self.relay.close()


def paho(python):
    """A maker of paho clients, run by this Python."""
    return lambda plan: Remote(plan, [python, "-u", "paho_client.py"])


def mqttjs(modules):
    """A maker of MQTT.js clients, from this folder of modules."""
    return lambda plan: Remote(plan, ["node", "mqttjs_client.mjs"], {"INTEROP_NODE_MODULES": str(modules)})
