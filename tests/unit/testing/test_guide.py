from __future__ import annotations

import yaml

from shadowmesh.testing import guide
from shadowmesh.testing.guide import Block


def test_all_placeholders_are_filled_and_the_comments_stay() -> None:
    text = guide.client_config(ip="10.10.10.7/24", key="ab" * 32, peer_id="me", server="ws://192.0.2.1:9545")
    values = yaml.safe_load(text)
    assert values["network"]["local_ip"] == "10.10.10.7/24"
    assert values["encryption"]["key"] == "ab" * 32
    assert values["peer"]["id"] == "me"
    assert values["relay"]["server"] == "ws://192.0.2.1:9545"
    assert "YOUR" not in text
    assert text.count("#") == guide.CLIENT_CONFIG.count("#")


def test_changes_are_merged_into_nested_mappings() -> None:
    text = guide.merged(guide.CLIENT_CONFIG, {"daemon": {"log_level": "debug"}, "network": {"mtu": 1300}})
    values = yaml.safe_load(text)
    assert values["daemon"] == {"listen_address": "127.0.0.1:9090", "log_level": "debug"}
    assert values["network"]["device_name"] == "shadowmesh0"
    assert values["network"]["mtu"] == 1300


def test_without_changes_the_text_is_left_as_it_is() -> None:
    assert guide.merged(guide.RELAY_CONFIG, {}) is guide.RELAY_CONFIG


PAGE = """\
# Title

```sh
before any section
```

## One

### A

```yaml
# not a heading
a: 1
```

### B

## Two

```
no language
```

<!-- not run: needs a mirror -->
```sh
apt update
```

    indented

      more

and text.
"""


def test_blocks_have_the_headings_above_them() -> None:
    assert guide.blocks(PAGE) == [
        Block("", "sh", "before any section\n"),
        Block("One / A", "yaml", "# not a heading\na: 1\n"),
        Block("Two", "", "no language\n"),
        Block("Two", "sh", "apt update\n", not_run="needs a mirror"),
        Block("Two", "", "indented\n\n  more\n"),
    ]


def test_commands_are_lines_without_comments() -> None:
    text = "# why\nfirst --port 1 \\\n    --more\n\nip link  # on Linux\necho 'a#b'\n"
    assert guide.commands(text) == ["first --port 1      --more", "ip link", "echo 'a#b'"]
