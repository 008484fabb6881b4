"""An RTSP camera on loopback whose frames contain a time stamp: /usr/bin/python3 fake_camera.py PORT FPS.

Runs with the Python of the system, which has the GStreamer of Debian. The top 16 rows of a frame contain 48 bits of the
monotonic clock in milliseconds, lowest first, each a block 10 pixels wide: bright is 1.
"""

import signal
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - the versions must be chosen first

WIDTH, HEIGHT = 480, 240
BITS, BLOCK, ROWS = 48, 10, 16


def frame(number):
    now_ms = int(time.monotonic() * 1000)
    stamp = b"".join((b"\xeb" if now_ms >> bit & 1 else b"\x10") * BLOCK for bit in range(BITS))
    luma = stamp * ROWS + bytes([number * 3 % 200 + 20]) * (WIDTH * (HEIGHT - ROWS))
    return luma + b"\x80" * (WIDTH * HEIGHT // 2)


class Factory(GstRtspServer.RTSPMediaFactory):
    def __init__(self, fps):
        super().__init__()
        self.fps = fps
        self.number = 0
        self.set_shared(True)
        self.set_launch(
            "( appsrc name=frames is-live=true block=false format=time do-timestamp=true "
            f"caps=video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate={fps}/1 "
            f"! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} bitrate=800 "
            "! h264parse ! rtph264pay name=pay0 pt=96 config-interval=1 )"
        )

    def do_configure(self, media):
        frames = media.get_element().get_child_by_name("frames")

        def push():
            if frames.emit("push-buffer", Gst.Buffer.new_wrapped(frame(self.number))) != Gst.FlowReturn.OK:
                return False
            self.number += 1
            return True

        GLib.timeout_add(1000 // self.fps, push)


def main():
    port, fps = sys.argv[1], int(sys.argv[2])
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/cam", Factory(fps))
    assert server.attach(None)
    loop = GLib.MainLoop()
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGTERM, loop.quit)
    print("READY", flush=True)
    loop.run()


main()
