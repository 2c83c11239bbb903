"""The text of an API key: one form, its id to be shown, its secret not."""

from __future__ import annotations

from shadowmesh.apikey import API_KEY, ID_BYTES, KEY_ID, SECRET_BYTES, key_id, key_text


def test_a_key_has_the_one_form() -> None:
    for fill in (b"\0", b"\xff", b"\x5a"):
        one = key_id(fill * ID_BYTES)
        text = key_text(one, fill * SECRET_BYTES)
        assert KEY_ID.fullmatch(one)
        assert len(text) == 56
        found = API_KEY.fullmatch(text)
        assert found is not None
        assert found[1] == one
    assert key_text("aaaaaaaa", bytes(32)) == "smk_aaaaaaaa_" + "A" * 43
