"""The camera backends, of equal rank: fake, video (file, RTSP, V4L2), picamera2; and the pacing wrapper."""
