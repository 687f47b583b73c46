package tap

import (
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// sanitize checks received metadata v against the frame b.
func sanitize(v *frame.VNet, b []byte) drop.Reason { return drop.None }
