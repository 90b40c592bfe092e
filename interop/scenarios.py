"""What each client has to live through. A scenario is written once; `t` says which client, version and transport."""

import hashlib
import subprocess

import payload
from clients import Plan
from cluster import HOST, SOON_S, Trouble, wait

MIB = 1024 * 1024
# Of a burst in whose middle the node is killed.
BURST = 120


def expect(is_so, what):
    if not is_so:
        raise Trouble(what)


def short(texts):
    return texts if len(texts) < 12 else f"{texts[:5]} … {texts[-5:]} ({len(texts)})"


class Turn:
    """One scenario with one client and version, on the cluster that all share."""

    def __init__(self, number, make, version, transport, cluster, is_killed):
        self.make, self.version, self.transport, self.cluster, self.is_killed = (
            make, version, transport, cluster, is_killed)
        # Names of its own, at most 23 bytes with what is appended: 3.1 allows no more.
        self.name = f"i{number}"
        self.topic = f"interop/{number}"
        # The leader, because its death is the hardest.
        self.home = cluster.leader()
        self.made = []

    def client(self, role, away=False, **how):
        """A client that begins on the home node, or on another."""
        others = [node for node in self.cluster.nodes if node is not self.home]
        nodes = others + [self.home] if away else [self.home] + others
        ca = str(self.cluster.certificates.ca) if self.transport in ("tls", "wss") else None
        plan = Plan(id=self.name + role, version=self.version, transport=self.transport, ca=ca,
                    ports=[node.ports[self.transport] for node in nodes], **how)
        self.made.append(self.make(plan))
        return self.made[-1]

    def kill(self, *clients):
        """SIGKILL to the home node; then these clients are connected again."""
        before = [len(client.seen.connected) for client in clients]
        self.home.kill()
        for client, times in zip(clients, before):
            client.wait_connected(times + 1)

    def end(self):
        for client in self.made:
            client.die()


def once_in_order(got, wanted):
    parted = next((n for n, (g, w) in enumerate(zip(got, wanted)) if g != w), min(len(got), len(wanted)))
    around = slice(max(0, parted - 3), parted + 10)
    twice, never = {g for g in got if got.count(g) > 1}, set(wanted) - set(got)
    expect(got == wanted, f"wanted each of {len(wanted)} once and in order, got {short(got)}; around the first that is "
                          f"not its turn's {got[around]}; twice {short(sorted(twice))}, never {short(sorted(never))}")


def numbers(first, last):
    return [str(n) for n in range(first, last)]


def connect(t):
    client = t.client("c").connect().subscribe(1, t.topic)
    if client.tells_present and t.version != "3.1":
        expect(client.seen.connected[0]["present"] is False, "a new session is said to be present")
    if t.is_killed:
        t.kill(client)
        again = client.seen.connected[1]
    else:
        client.disconnect()
        client = t.client("c", away=True).connect()
        if not client.tells_present:
            client.subscribe(1, t.topic)
        again = client.seen.connected[0]
    if client.tells_present and t.version != "3.1":
        expect(again["present"] is True, "the session is not there any more")


def qos0(t):
    subscriber = t.client("s").connect().subscribe(0, t.topic)
    publisher = t.client("p").connect()
    for n in numbers(0, 20):
        publisher.publish(t.topic, n, 0)
    once_in_order(subscriber.wait_messages(20), numbers(0, 20))
    if t.is_killed:
        # What is on its way may be lost; what comes after may not.
        t.kill(subscriber)
        publisher = t.client("q", away=True).connect()
        for n in numbers(20, 40):
            publisher.publish(t.topic, n, 0)
        once_in_order(subscriber.wait_messages(40), numbers(0, 40))


def burst(t, qos, inflight=20, size=BURST):
    """A burst of publishes, the node killed while some are acknowledged and some are not. What was received."""
    subscriber = t.client("s").connect().subscribe(qos, t.topic)
    publisher = t.client("p", inflight=inflight).connect()
    for n in numbers(0, size):
        publisher.publish(t.topic, n, qos)
    count = size
    if t.is_killed:
        publisher.wait_acknowledged(size // 10)
        # Both, where they tell: what paho is given while it reconnects overtakes what it has to send again (README).
        t.kill(*(client for client in (subscriber, publisher) if client.seen.connected))
        for n in numbers(size, 2 * size):
            publisher.publish(t.topic, n, qos)
        count = 2 * size
    publisher.wait_acknowledged(count)
    # On the same topic, so behind all that count.
    publisher.publish(t.topic, "end", qos)
    subscriber.wait_text("end")
    got = [text for text in subscriber.texts() if text != "end"]
    return got, numbers(0, count)


def qos1(t):
    got, wanted = burst(t, 1)
    if not t.is_killed:
        return once_in_order(got, wanted)
    lost = set(wanted) - set(got)
    expect(not lost, f"lost {short(sorted(lost))}")
    # The publisher's resend is a message of its own, and the subscriber's broken connection brings one more of each.
    often = {n for n in wanted if got.count(n) > 4}
    expect(not often, f"more often than two broken connections explain: {short(sorted(often))}")


def qos2(t):
    once_in_order(*burst(t, 2))


def inflight(t):
    once_in_order(*burst(t, 2, inflight=200, size=200))


def retained(t):
    publisher = t.client("p").connect()
    publisher.publish(t.topic, "first", 1, retain=True)
    publisher.publish(t.topic, "second", 1, retain=True)
    publisher.wait_acknowledged(2)
    if t.is_killed:
        t.home.kill()
    late = t.client("s", away=t.is_killed).connect().subscribe(1, t.topic)
    late.wait_messages(1)
    m = late.seen.messages[0]
    expect((m["text"], m["retain"]) == ("second", True), f"the retained message came as {m}")
    # An empty one removes it, and is delivered as what it is.
    publisher = t.client("q", away=True).connect()
    publisher.publish(t.topic, "", 1, retain=True)
    publisher.wait_acknowledged(1)
    late.wait_messages(2)
    nothing = t.client("n", away=True).connect().subscribe(1, t.topic)
    publisher.publish(t.topic, "live", 1, retain=False)
    nothing.wait_text("live")
    once_in_order(nothing.texts(), ["live"])


def will(t):
    watcher = t.client("w", away=True).connect().subscribe(1, t.topic)
    # It must not come back before it is killed itself.
    mourned = t.client("m", will={"topic": t.topic, "text": "will", "qos": 1}, reconnect_s=30)
    mourned.connect().subscribe(1, t.topic + "/other")
    if t.is_killed:
        t.home.kill()
    mourned.die()
    watcher.wait_messages(1)
    # One that says goodbye has no will.
    polite = t.client("g", away=True, will={"topic": t.topic, "text": "no will", "qos": 1})
    polite.connect().publish(t.topic + "/other", "hello", 1)
    polite.wait_acknowledged(1)
    polite.disconnect()
    publisher = t.client("p", away=True).connect()
    publisher.publish(t.topic, "end", 1)
    watcher.wait_text("end")
    once_in_order(watcher.texts(), ["will", "end"])


def large(t):
    subscriber = t.client("s").connect().subscribe(2, t.topic)
    publisher = t.client("p").connect()
    publisher.publish(t.topic, "large", 2, size=MIB)
    if t.is_killed:
        t.kill(subscriber)
    publisher.wait_acknowledged(1)
    publisher.publish(t.topic, "end", 2)
    subscriber.wait_text("end")
    whole = hashlib.sha256(payload.of("large", MIB)).hexdigest()
    got = [(m["size"], m["sha256"]) for m in subscriber.seen.messages[:-1]]
    expect(got == [(MIB, whole)], f"instead of 1 MiB once there came {got}")


def shared(t):
    qos = 2 if t.is_killed else 1
    filters = [f"$share/{t.name}/{t.topic}", t.topic + "/end"]
    members = [t.client(role, away).connect().subscribe(qos, *filters) for role, away in (("a", False), ("b", True))]
    publisher = t.client("p", away=True).connect()
    for n in numbers(0, BURST):
        publisher.publish(t.topic, n, qos)
    if t.is_killed:
        publisher.wait_acknowledged(BURST // 10)
        t.kill(members[0])
        for n in numbers(BURST, 2 * BURST):
            publisher.publish(t.topic, n, qos)
    wanted = numbers(0, 2 * BURST if t.is_killed else BURST)
    publisher.wait_acknowledged(len(wanted))

    def together():
        return [text for member in members for text in member.texts()]
    members[0]._wait(f"{len(wanted)} messages with {members[1].plan.id}", lambda: len(together()) >= len(wanted))
    # What comes to both members, behind everything: what comes twice would be seen by then.
    publisher.publish(t.topic + "/end", "end", qos)
    for member in members:
        member.wait_text("end")
    once_in_order(sorted((text for text in together() if text != "end"), key=int), wanted)
    expect(all(len(member.texts()) > 1 for member in members), "one member got everything")


# Name, what it does, transport.
SCENARIOS = {
    "connect": (connect, "tcp"),
    "QoS 0": (qos0, "tcp"),
    "QoS 1": (qos1, "tcp"),
    "QoS 2": (qos2, "tcp"),
    "retained": (retained, "tcp"),
    "will": (will, "tcp"),
    "1 MiB": (large, "tcp"),
    "200 QoS 2 in flight": (inflight, "tcp"),
    "shared subscription": (shared, "tcp"),
    "TLS": (qos2, "tls"),
    "WebSocket": (qos2, "ws"),
}


def speaks_no_websocket(t):
    """Neither by URL nor by an option."""
    node = t.home.ports["ws"]
    command = ["mosquitto_pub", "-L", f"ws://{HOST}:{node}/{t.topic}", "-m", "hello"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=SOON_S)
    said = tried.stdout + tried.stderr
    expect(tried.returncode != 0 and "scheme" in said, f"a WebSocket URL is taken, or refused for another reason: {said}")
    help = subprocess.run(["mosquitto_pub", "--help"], capture_output=True, text=True, timeout=SOON_S).stdout.lower()
    expect("websocket" not in help and "--ws" not in help, "--help knows WebSocket: take the row off NOT_OFFERED")


def ends_when_tls_breaks(t):
    client = t.client("c").connect().subscribe(2, t.topic)
    t.home.kill()
    wait("mosquitto_sub ends or is connected again",
         lambda: client.processes[0].poll() is not None or len(client.seen.connected) > 1)
    expect(len(client.seen.connected) == 1, "it is connected again by itself: take the row off NOT_OFFERED")


# What a client does not offer: why, and what shows that this version does not. The row fails when it does.
NO_WEBSOCKET = ("mosquitto's commands speak no WebSocket", speaks_no_websocket)
NOT_OFFERED = {
    ("mosquitto", "WebSocket"): NO_WEBSOCKET,
    ("mosquitto", "WebSocket, node killed"): NO_WEBSOCKET,
    ("mosquitto", "TLS, node killed"): (
        "libmosquitto does not reconnect when TLS ends without goodbye: it ends itself", ends_when_tls_breaks),
}
