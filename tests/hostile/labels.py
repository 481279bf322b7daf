"""Files of labels."""

import os

from tests.hostile.case import all_labels, hostile, labelled


@hostile(0, "report")
def labels_in_utf_16_with_a_blank_last_line(directory):
    return labelled(directory, all_labels(directory, tail="\n").encode("utf-16"))


@hostile(0, "report")
def labels_with_the_line_ends_of_windows(directory):
    return labelled(directory, b"\xef\xbb\xbf" + all_labels(directory, end="\r\n").encode())


@hostile(2, "labels.csv")
def labels_in_cp1252(directory):
    return labelled(directory, all_labels(directory, tail="é.jpg,é\n").encode("cp1252"))


@hostile(2, "labels.csv")
def a_quote_that_stays_open(directory):
    return labelled(directory, all_labels(directory, head='path,label\n"').encode())


@hostile(2, "labels.csv")
def a_label_of_200000_characters(directory):
    return labelled(directory, all_labels(directory, tail="x.jpg," + "x" * 200_000).encode())


@hostile(2, "labels.csv")
def a_zero_byte_in_the_labels(directory):
    return labelled(directory, all_labels(directory, tail="x\0.jpg,x\n").encode())


@hostile(2, "labels.csv")
def labels_without_a_header(directory):
    return labelled(directory, all_labels(directory, head="").encode())


@hostile(2, "labels.csv")
def labels_that_are_empty(directory):
    return labelled(directory, b"")


@hostile(2, "cats/01.jpg")
def an_image_without_a_label(directory):
    return labelled(directory, all_labels(directory).replace("cats/01.jpg,cats\n", "").encode())


@hostile(2, "stranger")
def a_label_without_an_image(directory):
    return labelled(directory, all_labels(directory, tail="stranger.jpg,x\n").encode())


@hostile(2, "labels")
def labels_that_are_a_fifo(directory):
    os.mkfifo(directory / "labels.csv")
    return [f"data.labels={directory / 'labels.csv'}"]


@hostile(2, "labels")
def labels_that_are_a_folder(directory):
    return [f"data.labels={directory}"]
