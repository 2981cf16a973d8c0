"""The reference state machine on plain dicts, shared by the Python peers.

step(key, cmd, flow, at) -> (next_flow or None, event kind, error or None)
event(id, key, cmd, flow, kind, error, at) -> audit event as a dict
"""


class Rejected(Exception):
    pass


def _text(d, field):
    v = d.get(field)
    if type(v) is not str:
        raise Rejected("bad " + field)
    return v


def step(key, cmd, flow, at):
    try:
        if type(cmd) is not dict:
            raise Rejected("not an object")
        kind = _text(cmd, "kind")
        _text(cmd, "command_id")
        if _text(cmd, "flow_id") != key:
            raise Rejected("flow_id is not the key")
        expected = cmd.get("expected_revision")
        if expected is not None and (flow is None or expected != flow["revision"]):
            raise Rejected("revision mismatch")
        if kind == "update_state":
            patch, nxt = cmd.get("patch"), cmd.get("next_step")
            if type(patch) is not dict:
                raise Rejected("bad patch")
            if nxt is not None and type(nxt) is not str:
                raise Rejected("bad next_step")
            if flow is None:
                raise Rejected("no such flow")
            new = {
                **flow,
                "state_json": {**flow["state_json"], **patch},
                "revision": flow["revision"] + 1,
                "updated_at": at,
            }
            if nxt is not None:
                new["current_step"] = nxt
            return new, "state_updated", None
        if kind == "start":
            if flow is None:
                raise Rejected("no such flow")
            if flow["status"] != "created":
                raise Rejected("illegal transition")
            return (
                {**flow, "status": "running", "revision": flow["revision"] + 1, "updated_at": at},
                "started",
                None,
            )
        if kind == "create":
            if flow is not None:
                raise Rejected("flow exists")
            state = cmd.get("state_json")
            if type(state) is not dict:
                raise Rejected("bad state_json")
            return (
                {
                    "id": key,
                    "controller_id": _text(cmd, "controller_id"),
                    "goal": _text(cmd, "goal"),
                    "owner_session_key": _text(cmd, "owner_session_key"),
                    "requester_origin": _text(cmd, "requester_origin"),
                    "current_step": _text(cmd, "current_step"),
                    "state_json": state,
                    "status": "created",
                    "revision": 0,
                    "created_at": at,
                    "updated_at": at,
                },
                "created",
                None,
            )
        raise Rejected("unknown kind")
    except Rejected as e:
        return None, "rejected", str(e)


def event(id_, key, cmd, flow, kind, error, at):
    cid = cmd.get("command_id") if type(cmd) is dict else None
    if flow is None:
        payload = {"state": None, "step": None, "status": None}
        rev = -1
    else:
        payload = {
            "state": flow["state_json"],
            "step": flow["current_step"],
            "status": flow["status"],
        }
        rev = flow["revision"]
    if error is not None:
        payload["error"] = error
    return {
        "id": id_,
        "flow_id": key,
        "kind": kind,
        "revision": rev,
        "command_id": cid if type(cid) is str else None,
        "payload": payload,
        "at": at,
    }
