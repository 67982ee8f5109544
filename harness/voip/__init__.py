"""VoIP protocols; knows nothing of clouds."""
