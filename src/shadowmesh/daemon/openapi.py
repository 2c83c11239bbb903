"""The description of the local API (OpenAPI 3.1) that GET /openapi.json answers."""

from __future__ import annotations

from typing import Any

from shadowmesh import __version__

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_MAYBE: Schema = {"type": ["number", "null"]}
_TEXTS: Schema = {"type": "array", "items": _TEXT}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _is(schema: Schema, text: str) -> Schema:
    return schema | {"description": text}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_STATE = _TEXT | {"enum": ["connected", "joining", "connecting", "waiting", "down"]}
_RELAY_STATE = _is(_TEXT, "as `status`, for one relay; or `standby`")

_PEER = _object(
    name=_is(_TEXT, "its peer.id"),
    ips=_is(_TEXTS, "overlay IPs that it has proved to be at"),
    fingerprint=_TEXT,
    identity=_is(_TEXT, "`known`; `changed`: since this daemon started, another key than before"),
    connected=_is(_FLAG, "whether packets reach it, as far as is known"),
    path=_is(_TEXT, "the relay that packets to it go through"),
    rtt_ms=_is(_MAYBE, "of the last probe to it and back"),
    loss_percent=_is(_MAYBE, "of its messages to us that have not come"),
    heard=_is(_NUMBER, "seconds since anything came"),
    last_handshake=_is(_NUMBER, "seconds since the last handshake"),
    handshakes=_COUNT,
    rekeys=_is(_COUNT, "handshakes after the first"),
    messages_in=_COUNT,
    messages_out=_COUNT,
    bytes_in=_is(_COUNT, "inside the tunnel"),
    bytes_out=_COUNT,
    agent=_is(_TEXT, "program and version"),
    mtu=_COUNT,
    offload=_is(_FLAG, "whether it has sent several segments as one packet"),
    routes=_is(_TEXTS, "networks it offers"),
)
_RELAY = _object(
    server=_TEXT,
    address=_is(_TEXT, "the IP address connected to, or to be; empty while not known, or a proxy's to know"),
    name=_TEXT,
    region=_TEXT,
    state=_RELAY_STATE,
    reason=_is(_TEXT, "why it is not connected"),
    seconds=_is(_NUMBER, "since it has been connected, or not"),
    connects=_COUNT,
    reconnects=_COUNT,
    rtt_ms=_MAYBE,
    remote=_is(_TEXT, "our address as the relay sees it"),
    dropped=_is(_COUNT, "frames given up because the relay did not read"),
    refused=_is(_map(_TEXT), "own addresses that it gives to another device"),
    history=_is(
        _list(
            _object(
                time=_TEXT | {"format": "date-time"},
                seconds_ago=_NUMBER,
                event=_TEXT | {"enum": ["lost", "unreachable"]},
                kind=_TEXT,
                reason=_TEXT,
            )
        ),
        "the last ten losses, newest first",
    ),
)
_STATUS = _object(
    status=_STATE,
    reason=_TEXT,
    diagnosis=_is(_list(_object(code=_TEXT, text=_TEXT)), "what is wrong and what to do"),
    version=_TEXT,
    uptime=_NUMBER,
    name=_TEXT,
    device=_TEXT,
    ips=_TEXTS,
    mtu=_COUNT,
    offload=_TEXTS,
    fingerprint=_TEXT,
    network=_TEXT,
    relay=_is(_ref("Relay"), "the first of `relays`"),
    relays=_list(_ref("Relay")),
    peers=_list(_ref("Peer")),
    handshakes=_is(_COUNT, "with all peers, rekeys included"),
    packets_in=_COUNT,
    packets_out=_COUNT,
    drops=_map(_COUNT),
    events=_map(_COUNT),
    contested=_is(_map(_NUMBER), "own addresses that another device wants: seconds ago"),
    conflicts=_is(_map(_NUMBER), "overlay IPs that two peers show: seconds ago"),
    identities_refused=_map(_object(fingerprint=_TEXT, seconds_ago=_NUMBER)),
)
_STATUS["properties"]["next"] = _is(
    _object(network=_TEXT, fingerprint=_TEXT), "while there is an encryption.next_key: of its network"
)
_HEALTH = _object(status=_STATE, reason=_TEXT, uptime=_NUMBER, version=_TEXT)
_PING = _object(
    peer=_TEXT,
    name=_TEXT,
    ips=_TEXTS,
    rtt_ms=_is(_list(_MAYBE), "of each probe; null: not answered within 2 s"),
    waiting_for=_is(_TEXT, "what the last probe lacked"),
)
_ERROR = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}


def _json(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _get(name: str, text: str, schema: Schema, **more: Schema) -> Schema:
    return {
        "get": {
            "operationId": name,
            "summary": text,
            "responses": {"200": _json(text, schema), "default": {"$ref": "#/components/responses/Error"}}
            | more,
        }
    }


def _post(name: str, text: str, result: Schema, required: bool = False, **fields: Schema) -> Schema:
    body = {"type": "object", "properties": fields, "additionalProperties": False}
    if required:
        body["required"] = [next(iter(fields))]
    return {
        "post": {
            "operationId": name,
            "summary": text,
            "security": [{"token": []}],
            "requestBody": {"required": required, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": _json(text, result),
                "default": {"$ref": "#/components/responses/Error"},
            },
        }
    }


DESCRIPTION: Schema = {
    "openapi": "3.1.0",
    "info": {
        "title": "ShadowMesh daemon",
        "version": __version__,
        "description": "The local API of one device. GET is open on this host; POST needs the token.",
        "license": {"name": "MIT", "identifier": "MIT"},
    },
    "servers": [{"url": "http://127.0.0.1:9090", "description": "daemon.listen_address"}],
    "paths": {
        "/health": _get(
            "health",
            "Whether there is a relay",
            _ref("Health"),
            **{"503": _json("Not connected to a relay", _ref("Health"))},
        ),
        "/status": _get("status", "Everything", _ref("Status")),
        "/peers": _get("peers", "The peers", _object(peers=_list(_ref("Peer")))),
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "For Prometheus",
                "responses": {
                    "200": {"description": "Metrics", "content": {"text/plain": {"schema": _TEXT}}},
                    "default": {"$ref": "#/components/responses/Error"},
                },
            }
        },
        "/openapi.json": _get("openapi", "This description", {"type": "object"}),
        "/connect": _post("connect", "Connect to the relay again", _ref("Health")),
        "/disconnect": _post("disconnect", "Leave the relay until /connect or a restart", _ref("Health")),
        "/reload": _post(
            "reload",
            "Read the configuration again",
            _object(applied=_TEXTS, refused=_TEXTS, warnings=_TEXTS),
        ),
        "/trust": _post(
            "trust",
            "Trust the key that answers for an overlay IP now",
            _object(ip=_TEXT, fingerprint=_TEXT, before=_TEXT),
            True,
            ip=_TEXT,
            fingerprint=_is(_TEXT, "only if it is this one"),
        ),
        "/ping": _post(
            "ping",
            "Measure the way to a peer and back",
            _ref("Ping"),
            True,
            peer=_is(_TEXT, "its name or overlay IP"),
            count={"type": "integer", "minimum": 1, "maximum": 20, "default": 1},
        ),
    },
    "components": {
        "schemas": {
            "Health": _HEALTH,
            "Status": _STATUS,
            "Relay": _RELAY,
            "Peer": _PEER,
            "Ping": _PING,
            "Error": _ERROR,
        },
        "responses": {"Error": _json("Refused, in words", _ref("Error"))},
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "description": "in daemon.token_file"}
        },
    },
}
