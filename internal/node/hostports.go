package node

import (
	"errors"
	"sync/atomic"

	"vswitch/internal/attach"
	"vswitch/vswitch/gateway"
)

// hostPorts opens pods' ports of the host at the gateway, which comes later than
// the attachments do.
type hostPorts struct {
	gateway  atomic.Pointer[hostPortTable]
	identity func(*attach.Attachment) uint64 // as services know the pod
}

// hostPortTable is the part of the gateway that is asked.
type hostPortTable interface {
	PutHostPort(gateway.HostPort) error
	DeleteHostPort(gateway.HostPortKey)
}

var _ attach.HostPorts = (*hostPorts)(nil)

func (h *hostPorts) serve(t hostPortTable) { h.gateway.Store(&t) }

// Open implements attach.HostPorts.
func (h *hostPorts) Open(a *attach.Attachment) error {
	table := h.gateway.Load()
	if table == nil {
		return errors.New("the gateway is not up yet")
	}
	for i := range a.Ports {
		port := &a.Ports[i]
		p := gateway.HostPort{HostPortKey: hostPortKey(a, port)}
		for _, addr := range a.Addrs {
			p.Endpoints = append(p.Endpoints, gateway.Endpoint{
				Addr: addr, Port: port.PodPort, ID: h.identity(a), Cluster: true, Local: true, OnNode: true, Ready: true,
			})
		}
		if err := (*table).PutHostPort(p); err != nil {
			for j := range a.Ports[:i] {
				(*table).DeleteHostPort(hostPortKey(a, &a.Ports[j]))
			}
			return err
		}
	}
	return nil
}

// Close implements attach.HostPorts.
func (h *hostPorts) Close(a *attach.Attachment) {
	table := h.gateway.Load()
	if table == nil {
		return
	}
	for i := range a.Ports {
		(*table).DeleteHostPort(hostPortKey(a, &a.Ports[i]))
	}
}

func hostPortKey(a *attach.Attachment, p *attach.PortMapping) gateway.HostPortKey {
	return gateway.HostPortKey{
		Pod: a.Pod.Namespace + "/" + a.Pod.Name, HostIP: p.HostIP, Port: p.HostPort, Protocol: uint8(p.Protocol),
	}
}
