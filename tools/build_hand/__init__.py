"""Builds the embedded right hand (MANO's file layout) from published anatomy. Run ``python -m tools.build_hand``."""
