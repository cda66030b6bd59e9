"""Values in files: what JSON cannot represent well is a file, and its text only has the id.

Files of a call are read-only, at the paths in its header; new ones are passed out as open
descriptors, and the receiver copies and verifies them.
"""

import os

from .problems import Mismatch, expected

FORMATS = {"file": "", "ndarray": "npy", "pickle": "pickle"}  # the others are Arrow's file format
SUFFIXES = {"npy": ".npy", "arrow": ".arrow", "pickle": ".pickle"}
FILES_MAX = 64  # per call; as many descriptors fit into one message


class CarriedFiles:
    """The files of the current call."""

    def __init__(self):
        self.begin({})

    def begin(self, header):
        self.given = header.get("files") or {}  # by id: path and format
        self.ids = list(header.get("file_ids") or ())
        self.made = []  # (id, format, name, descriptor)
        self.opened = []
        self.mapped = []  # objects that map a file: released after the reply

    def place(self, plain, tag="file"):
        if type(plain) is not dict or type(plain.get("$file")) is not str:
            raise expected('a file as {"$file": id}', plain)
        found = self.given.get(plain["$file"])
        if found is None:
            raise Mismatch("the file did not come with the call")
        if tag == "pickle" and found[1] != tag:
            raise Mismatch("the file is not a pickle from a node of this run")
        return found[0]

    def open(self, place):
        stream = open(place, "rb")
        self.opened.append(stream)
        return stream

    def hand_over(self, descriptor, form, name):
        if not self.ids:
            os.close(descriptor)
            raise Mismatch("a call gives at most %d files" % FILES_MAX, "output_too_large")
        file_id = self.ids.pop()
        self.made.append((file_id, form, name, descriptor))
        return {"$file": file_id}

    def end(self):
        for _, _, _, descriptor in self.made:
            os.close(descriptor)
        for stream in self.opened:
            try:
                stream.close()
            except BaseException:
                pass
        self.made, self.opened, self.mapped, self.given, self.ids = [], [], [], {}, []


FILES = CarriedFiles()
