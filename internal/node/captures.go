package node

import (
	"errors"
	"fmt"

	"vswitch/internal/attach"
	"vswitch/internal/nodeapi"
	"vswitch/vswitch"
)

// captures lets the API show what the switch carries.
type captures struct {
	node        string
	ports       *countedPorts
	attachments *attach.Manager
	dataplane   *dataplane
}

var _ nodeapi.Captures = (*captures)(nil)

// Capture implements nodeapi.Captures.
func (c *captures) Capture(cfg vswitch.CaptureConfig) (*vswitch.Capture, error) {
	sw := c.ports.sw.Load()
	if sw == nil {
		return nil, errors.New("the switch is not up yet")
	}
	return sw.Capture(cfg)
}

// PodPort implements nodeapi.Captures.
func (c *captures) PodPort(namespace, name string) (string, error) {
	for _, a := range c.attachments.List() {
		if a.Pod.Namespace == namespace && a.Pod.Name == name {
			return a.Port, nil
		}
	}
	return "", fmt.Errorf("pod %s/%s is not on node %s; vswitch get pods says where it is: %w", namespace, name, c.node, attach.ErrNotFound)
}

// Tunnel implements nodeapi.Captures.
func (c *captures) Tunnel() string { return tunnelName }

// PeerNode implements nodeapi.Captures.
func (c *captures) PeerNode(peer uint32) string { return c.dataplane.nodeOf(peer) }
