"""An H.264 stream of raw macroblocks, written bit by bit: frames of 16x32, each as one picture or as two fields (no
encoder here makes fields)."""

from fractions import Fraction

import av


class Bits:
    def __init__(self):
        self.text = ""

    def put(self, value, count):
        self.text += f"{value:0{count}b}" if count else ""
        return self

    def code(self, *values):
        """Write unsigned Exp-Golomb codes."""
        for value in values:
            self.text += "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"
        return self

    def unit(self, header):
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return b"\0\0\0\1" + bytes([header]) + int(text, 2).to_bytes(len(text) // 8)


def parameter_sets():
    sequence = (
        Bits().put(77, 8).put(0, 8).put(30, 8).code(0, 0, 2, 1).put(0, 1).code(0, 0).put(0b00100, 5)
    )  # fields are allowed: frame_mbs_only_flag 0
    return sequence.unit(0x67) + Bits().code(0, 0).put(0, 2).code(0, 0, 0).put(0, 3).code(0, 0, 0).put(0, 3).unit(0x68)


def picture(number, parity):
    """Write one picture: a frame if ``parity`` is None, else its top (0) or bottom (1) field; the first of each frame
    is a key picture."""
    is_key = parity != 1
    bits = Bits().code(0, 7, 0).put(0, 4)
    bits.put(0, 1) if parity is None else bits.put(2 + parity, 2)
    if is_key:
        bits.code(number % 2).put(0, 2)
    else:
        bits.put(0, 1)
    bits.code(0)
    for row in range(2 if parity is None else 1):
        bits.code(25)
        bits.put(0, -len(bits.text) % 8)
        luma = 40 + (number * 7 + row + (parity or 0)) % 150
        bits.put(int.from_bytes(bytes([luma]) * 256 + bytes([100]) * 64 + bytes([150]) * 64), 384 * 8)
    return bits.unit(0x65 if is_key else 0x61)


def write_fields(path, kinds):
    """Write frames, each as one picture ("frame") or as two packets of a field each ("fields"), at 25 a second."""
    raw, times = path.with_suffix(".h264"), []
    with raw.open("wb") as file:
        for number, kind in enumerate(kinds):
            for half, parity in enumerate((None,) if kind == "frame" else (0, 1)):
                file.write(parameter_sets() * (parity != 1) + picture(number, parity))
                times.append(number * 40 + 20 * half)
    with av.open(str(raw)) as box, av.open(str(path), "w") as sink:
        copy = sink.add_stream_from_template(box.streams.video[0])
        copy.time_base = Fraction(1, 1000)
        packets = [packet for packet in box.demux(video=0) if packet.size]
        for packet, time in zip(packets, times, strict=True):
            packet.pts = packet.dts = time
            packet.duration = 20 if time % 40 else 40
            packet.time_base, packet.stream = Fraction(1, 1000), copy
            sink.mux(packet)
    raw.unlink()
    return path
