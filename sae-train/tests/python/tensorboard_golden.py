"""Writes tests/golden/events.bin with TensorBoard's own writer, or prints the scalars of event files as it reads them.

Usage:  python3 tensorboard_golden.py write FILE
        python3 tensorboard_golden.py read DIRECTORY    (one JSON line per scalar: [split, tag, step, value])

Needs: pip install tensorboard
"""

import json
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter


def write(path):
    events = [Event(wall_time=1.5, file_version="brain.Event:2")]
    for time, step, values in [
        (2.25, 1, {"fvu": 0.5, "l0": 31.25}),
        (1e9 + 0.125, 1_000_000, {"loss": -1e-3}),
    ]:
        event = Event(wall_time=time, step=step)
        for tag, value in values.items():
            event.summary.value.add(tag=tag, simple_value=value)
        events.append(event)
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())


def read(directory):
    for split in sorted(pathlib.Path(directory).iterdir()):
        events = EventAccumulator(str(split), size_guidance={"scalars": 0}, purge_orphaned_data=False)
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for scalar in events.Scalars(tag):
                print(json.dumps([split.name, tag, scalar.step, scalar.value]))


{"write": write, "read": read}[sys.argv[1]](sys.argv[2])
