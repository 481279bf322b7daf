"""Configs and words of the command line that people, editors and other systems write."""

import json
import os

from tests.hostile.case import config, hostile, write_config


@hostile(0, "active rows")
def a_config_in_utf_16(directory):
    (directory / "config.json").write_bytes(json.dumps(config(directory)).encode("utf-16"))
    return ["--dry-run"]


@hostile(0, "active rows")
def a_config_with_a_byte_order_mark(directory):
    (directory / "config.json").write_bytes(json.dumps(config(directory)).encode("utf-8-sig"))
    return ["--dry-run"]


@hostile(2, "config.json")
def a_config_in_cp1252(directory):
    (directory / "config.json").write_bytes(
        json.dumps(config(directory, output="é"), ensure_ascii=False).encode("cp1252")
    )


@hostile(2, "config.json")
def a_config_of_bytes(directory):
    (directory / "config.json").write_bytes(bytes(range(256)))


@hostile(2, "config.json")
def an_empty_config(directory):
    (directory / "config.json").write_text("")


@hostile(2, "config.json")
def a_config_nested_2000_deep(directory):
    (directory / "config.json").write_text('{"a":' * 2000 + "1" + "}" * 2000)


@hostile(2, "config.json")
def a_list_of_a_hundred_thousand_brackets(directory):
    (directory / "config.json").write_text("[" * 100_000)


@hostile(2, "")
def an_override_of_2000_sections(directory):
    return [".".join(["a"] * 2000) + "=1"]


@hostile(2, "seed")
def a_key_that_stands_twice(directory):
    (directory / "config.json").write_text('{"seed": 1, "seed": 2, "output": "out"}')


@hostile(2, "optimizer.lr")
def a_number_that_is_not_finite(directory):
    (directory / "config.json").write_text('{"optimizer": {"lr": 1e999}}')


@hostile(2, "")
def a_number_of_5000_digits(directory):
    return ["seed=" + "9" * 5000]


@hostile(2, "config.json")
def a_config_that_is_a_directory(directory):
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()


@hostile(2, "config.json")
def a_config_that_is_a_fifo(directory):
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")


@hostile(2, "config.json")
def a_config_of_20_megabytes(directory):
    (directory / "config.json").write_text('{"output": "' + "x" * 20_000_000 + '"}')


@hostile(2, "config.json")
def a_config_that_links_to_itself(directory):
    (directory / "config.json").unlink()
    (directory / "config.json").symlink_to("config.json")


@hostile(2, "output")
def an_output_that_is_not_utf_8(directory):
    return [os.fsdecode(b"output=" + os.fsencode(directory) + b"/\xff")]


@hostile(2, "output")
def an_output_with_a_zero_byte(directory):
    write_config(directory, config(directory, output="a\0b"))


@hostile(2, "output")
def an_output_with_an_escape_sequence(directory):
    return ["output=" + str(directory) + "/\x1b[31mred"]


@hostile(2, "data.root")
def a_root_that_is_not_utf_8(directory):
    return [os.fsdecode(b"data.root=" + os.fsencode(directory) + b"/\xff")]


@hostile(1, "too long")
def an_output_whose_name_is_too_long(directory):
    return [f"output={directory}/" + "x" * 300]


@hostile(2, "nobody-of-that-name")
def a_home_of_nobody(directory):
    return ["output=~nobody-of-that-name/x"]


@hostile(2, "nobody-of-that-name")
def a_root_in_the_home_of_nobody(directory):
    return ["data.root=~nobody-of-that-name/x"]


@hostile(2, "epochs")
def a_number_that_no_run_reaches(directory):
    return ["epochs=1e308"]


@hostile(2, "count")
def a_thousand_million_views(directory):
    return ['data.augment={"kind":"photos","crops":[{"size":16,"count":1000000000}]}', "--dry-run"]


@hostile(2, "read_ahead")
def a_window_read_ahead_for_ever(directory):
    return ["store.read_ahead=9007199254740992"]


@hostile(2, "deepspeed.steps_per_print")
def an_interval_in_words(directory):
    return ["deepspeed.steps_per_print=often"]
