"""How a batch gets from a worker to the run: in anonymous memory, without a path, a listener, a thread or a limit of its own.

    worker   memfd_create -> the arrays, then a pickle of the rest       \\   one message of a few bytes,
    run      mmap -> tensors over the same pages, which go when they go  /    with the descriptor in it

A message is a datagram (SOCK_SEQPACKET): it comes whole or not at all, so that whoever reads never waits for the second half
of what a stopped or killed process began. An error is such a message by itself and needs no descriptor, because descriptors
may be what there are none of.

Left out: using the same memory again for the next batch; the kernel clears new pages each time, as it did in /dev/shm. A batch
that is kept holds one descriptor (Python's mmap has it).
"""

import contextlib
import mmap
import os
import pickle
import socket
import struct
import traceback
from array import array

import numpy as np
import torch

from datasets.batch import Batch

_BATCH, _ERROR = b"B", b"E"
_MESSAGE_BYTES = 1 << 16  # of the largest message; Linux allows three times that unless told otherwise
_TEXT_BYTES = 1 << 13  # of a traceback, and of an error: the end of the one, the beginning of the other
_LINE_CHARACTERS = 2000  # of a traceback, which may quote what it is about
_ALIGNMENT_BYTES = 64
_WHERE = struct.Struct("=QQ")  # of the pickle in the memory: its offset and its length


class Gone(Exception):
    """The other end is closed, and nothing that it sent is left."""


def send_batch(connection: socket.socket, batch: Batch) -> None:
    """Takes the views out of the batch, one by one, so that at most one of them is held twice.

    Raises OSError where the system refuses memory or a descriptor, ConnectionError where nobody reads any more.
    """
    descriptor = os.memfd_create("batch")
    try:
        layout, offset = [], 0
        while batch.views:
            array = np.ascontiguousarray(batch.views.pop(0).numpy())
            layout.append((array.dtype.str, array.shape, offset))
            if array.nbytes:
                _write(descriptor, array.data.cast("B"), offset)
            offset += -(-array.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        rest = pickle.dumps((layout, batch))
        _write(descriptor, memoryview(rest), offset)
        socket.send_fds(connection, [_BATCH + _WHERE.pack(offset, len(rest))], [descriptor])
    finally:
        os.close(descriptor)


def send_error(connection: socket.socket, error: BaseException) -> None:
    """As it is, where it can be pickled and read again; as its text where not. ConnectionError where nobody reads any more."""
    lines = [line[:_LINE_CHARACTERS] for line in traceback.format_exception(error)]
    trace = "".join(lines).encode(errors="backslashreplace")[-_TEXT_BYTES:]
    text = "".join(traceback.format_exception_only(error)).strip().encode(errors="backslashreplace")[:_TEXT_BYTES]
    pickled = b""
    with contextlib.suppress(Exception):
        # What ends a process, or interrupts it, means this process and not the one that hears of it.
        arrived = pickle.loads(pickle.dumps(error))
        if isinstance(error, Exception) and type(arrived) is type(error) and str(arrived) == str(error):
            pickled = pickle.dumps(error)
    if len(pickled) > _MESSAGE_BYTES // 2:
        pickled = b""
    connection.send(_ERROR + pickle.dumps((pickled, text, trace)))


def receive(connection: socket.socket) -> Batch | None:
    """The next batch that lies in a connection; None where nothing does. Never waits.

    Raises what `send_error` sent, with the traceback of the process that sent it as a note; Gone; and OSError where this process
    can have no more descriptors or memory.
    """
    try:
        try:
            message, descriptors = _message(connection)
        except ConnectionResetError:
            # It ended before it read all that it was sent. This is told once, and ahead of what it sent itself.
            message, descriptors = _message(connection)
    except BlockingIOError:
        return None
    except ConnectionError:
        raise Gone from None
    if not message:
        raise Gone
    kind, content = message[:1], message[1:]
    if kind == _ERROR:
        raise _rebuilt(content)
    if not descriptors:
        raise OSError("a batch came without its memory: too many files are open in this process; raise ulimit -n")
    try:
        return _batch(descriptors[0], *_WHERE.unpack(content))
    finally:
        os.close(descriptors[0])


def _message(connection: socket.socket) -> "tuple[bytes, array[int]]":
    # Python 3.11's socket.recv_fds drops its flags, and would wait.
    space = socket.CMSG_SPACE(array("i", [0]).itemsize)
    message, ancillary, _, _ = connection.recvmsg(_MESSAGE_BYTES, space, socket.MSG_DONTWAIT)
    descriptors = array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) // descriptors.itemsize * descriptors.itemsize])
    return message, descriptors


def _batch(descriptor: int, offset: int, length: int) -> Batch:
    try:
        memory = mmap.mmap(descriptor, offset + length)
    except OSError as error:
        raise OSError(
            f"no memory for a batch of {(offset + length) / 2**20:,.0f} MiB: {error.strerror}; "
            "lower data.workers or schedule.batch"
        ) from error
    layout, batch = pickle.loads(memoryview(memory)[offset:])
    for dtype, shape, start in layout:
        array = np.ndarray(shape, dtype, memory, start)
        # The tensor keeps the array, and the array the memory.
        batch.views.append(torch.from_numpy(array))
    return batch


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    """By write and not through mmap, where a lack of memory would be a signal and no error."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _rebuilt(content: bytes) -> BaseException:
    pickled, text, trace = pickle.loads(content)
    error: BaseException = RuntimeError(text.decode(errors="replace"))
    if pickled:
        with contextlib.suppress(Exception):
            error = pickle.loads(pickled)
    error.add_note(f"in a worker of the loader:\n{trace.decode(errors='replace')}")
    return error
