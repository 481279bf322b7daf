"""A folder of small labelled colour images, the same emoji as several artists drew them; what compare_methods has its colour table of.

    npm pack @iconify-json/twemoji @iconify-json/noto @iconify-json/openmoji @iconify-json/fluent-emoji-flat
    for file in iconify-json-*.tgz; do tar xzf "$file" --one-top-level; done
    pip install resvg-py
    python -m tests.render_emoji iconify-json-*/package --asked fluent-emoji-flat --output emoji

Each emoji is a folder named after its code points, below `train` in the styles that are trained on, and below `val` in the style that is
`asked`: so the question of the evaluation is which emoji an unknown style shows. Faces and hands of several skin colours differ by a colour
alone and are left out, and so is what the asked style or all others lack. PNG of 64 px on white.
"""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

_SIDE = 64
_SKIN = {f"1f3f{number:x}" for number in range(0xB, 0x10)}


def drawings(package: Path) -> dict[str, str]:
    """Code points, as "1f9d1-1f680", -> the SVG of one style."""
    icons: dict[str, Any] = json.loads((package / "icons.json").read_text())
    names: dict[str, str] = json.loads((package / "chars.json").read_text())
    width, height = icons.get("width", 16), icons.get("height", 16)
    found = {}
    for codes, name in sorted(names.items()):
        icon = icons["icons"].get(name)
        if icon is None or _SKIN & set(codes.split("-")):
            continue
        box = f"0 0 {icon.get('width', width)} {icon.get('height', height)}"
        found[codes] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">{icon["body"]}</svg>'
        )
    return found


def write(styles: dict[str, dict[str, str]], asked: str, output: Path) -> tuple[int, int]:
    """Returns how many images are trained on and how many are asked."""
    render: Any = importlib.import_module("resvg_py").svg_to_bytes
    trained = {style: by_code for style, by_code in styles.items() if style != asked}
    counts = {"train": 0, "val": 0}
    for codes in sorted(styles[asked]):
        if not any(codes in by_code for by_code in trained.values()):
            continue
        for style, by_code in styles.items():
            if codes in by_code:
                split = "val" if style == asked else "train"
                path = output / split / codes / f"{style}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(
                    render(by_code[codes], width=_SIDE, height=_SIDE, background="white", skip_system_fonts=True)
                )
                counts[split] += 1
    return counts["train"], counts["val"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Labelled colour images: emoji in several styles.")
    parser.add_argument("packages", type=Path, nargs="+", help="unpacked @iconify-json packages of emoji")
    parser.add_argument("--asked", required=True, help="the style that is not trained on, by its package's name")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    styles = {json.loads((one / "info.json").read_text())["prefix"]: drawings(one) for one in arguments.packages}
    if arguments.asked not in styles:
        raise SystemExit(f"--asked is {arguments.asked}; give one of {', '.join(styles)}")
    trained, asked = write(styles, arguments.asked, arguments.output)
    print(f"{trained} images to train on, {asked} that are asked, in {arguments.output}")


if __name__ == "__main__":
    main()
