"""The motion detector: one frame after another becomes a word on what moved. Touches nothing.

It looks at the luma, halved to about 160x120. How and why, with the measurements: docs/MOTION.md.
"""

from agent.motion.detector import Detector
from agent.motion.rules import Rules
from agent.motion.seen import Seen

__all__ = ["Detector", "Rules", "Seen"]
