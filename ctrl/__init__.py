"""ctrl: the control plane of fastproxy."""
