"""paho-mqtt under remote control: commands on standard input, events on standard output, one JSON object a line."""

import hashlib
import json
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import payload

VERSIONS = {"3.1": mqtt.MQTTv31, "3.1.1": mqtt.MQTTv311, "5": mqtt.MQTTv5}
lock = threading.Lock()


def say(event, **what):
    with lock:
        print(json.dumps({"event": event, **what}), flush=True)


class Client:
    def __init__(self, c):
        self.servers, self.at, self.is_5 = c["servers"], 0, c["version"] == "5"
        clean = {} if self.is_5 else {"clean_session": c["clean"]}
        self.mqtt = m = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, c["id"], protocol=VERSIONS[c["version"]],
                                    transport="websockets" if c["transport"] == "ws" else "tcp", **clean)
        m.max_inflight_messages_set(c["inflight"])
        m.reconnect_delay_set(c["reconnect_s"], c["reconnect_s"])
        m.on_connect, m.on_disconnect, m.on_message = self.on_connect, self.on_disconnect, self.on_message
        m.on_subscribe = lambda _c, _u, _mid, codes, _p: say("subscribed", codes=[code.value for code in codes])
        m.on_publish = lambda _c, _u, _mid, _r, _p: say("acknowledged")
        if c["transport"] == "tls":
            m.tls_set(c["ca"])
        if c["transport"] == "ws":
            m.ws_set_options(path="/mqtt")
        if c["will"]:
            m.will_set(c["will"]["topic"], c["will"]["text"], c["will"]["qos"])
        properties = None
        if self.is_5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if c["clean"] else 3600
        start = {"clean_start": c["clean"], "properties": properties} if self.is_5 else {}
        m.connect_async(*self.servers[0], keepalive=20, **start)
        self.start = start
        m.loop_start()

    def on_connect(self, _client, _data, flags, code, _properties):
        if code.value == 0:
            say("connected", present=flags.session_present, server=self.servers[self.at])
        else:
            say("refused", code=code.value)

    def on_disconnect(self, _client, _data, _flags, code, _properties):
        say("disconnected", code=code.value)
        # paho goes back to where it was; the next of several servers is the application's to name.
        self.at = (self.at + 1) % len(self.servers)
        if code.value != 0:
            self.mqtt.connect_async(*self.servers[self.at], keepalive=20, **self.start)

    def on_message(self, _client, _data, m):
        text = m.payload.decode() if len(m.payload) <= 256 else None
        say("message", topic=m.topic, qos=m.qos, retain=bool(m.retain), dup=bool(m.dup), text=text,
            size=len(m.payload), sha256=hashlib.sha256(m.payload).hexdigest())


client = None
for line in sys.stdin:
    c = json.loads(line)
    if c["do"] == "connect":
        client = Client(c)
    elif c["do"] == "subscribe":
        client.mqtt.subscribe([(filter, c["qos"]) for filter in c["filters"]])
    elif c["do"] == "publish":
        client.mqtt.publish(c["topic"], payload.of(c["text"], c["size"]), c["qos"], c["retain"])
    elif c["do"] == "disconnect":
        client.mqtt.disconnect()
        client.mqtt.loop_stop()
        say("ended")
