//go:build linux

package vxlan

import "time"

// SetPathLifetime changes how long a path's MTU is kept.
func (t *Tunnel) SetPathLifetime(d time.Duration) { t.paths.lifetime = d }
