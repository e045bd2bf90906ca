"""Who plays: the protocol and its table in `agent`, the baseline in `scripted`."""
