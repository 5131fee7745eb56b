"""Synthesise pictures and sounds: of the dataset avsynth, and other ones to pre-train networks on."""
