package attach

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
	"vswitch/tap"
	"vswitch/vswitch"
	"vswitch/vswitch/fib"
)

// Attach takes the queues that belong to a token and opens the pod's port. It
// owns fds, whatever it returns. After an error the attachment and its token are
// as before.
func (m *Manager) Attach(token string, f tap.Features, fds []int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.byToken(token)
	switch {
	case m.leases == nil || m.closed:
		closeAll(fds)
		return ErrNotReady
	case e == nil:
		closeAll(fds)
		return ErrToken
	case len(fds) != e.Queues:
		closeAll(fds)
		return fmt.Errorf("%d queues for %s, want %d", len(fds), e.podName(), e.Queues)
	}
	before := e.Attachment
	if err := m.open(e, fds, f); err != nil {
		return err
	}
	if err := m.keep(e, fds); err != nil {
		err = errors.Join(err, m.detach(e))
		e.Attachment = before
		return errors.Join(err, m.save()) // the record may be there, and the descriptors not
	}
	if before.State == Pending && m.cfg.Attached != nil {
		m.cfg.Attached(time.Since(e.added))
	}
	m.cfg.Log.Info("pod attached", "pod", e.podName(), "port", e.Port, "addr", e.Addrs, "mac", e.MAC, "queues", len(fds), "features", f.String())
	return nil
}

// keep has an open attachment outlive this process: its descriptors in the fd store, which
// keeps duplicates, and its record in the file. The record is written while the store, another
// process as a rule, is waited for. Of one without the other the next daemon makes nothing:
// without descriptors an attachment waits for reattach, and descriptors without a record are
// nobody's.
func (m *Manager) keep(e *entry, fds []int) error {
	saved := make(chan error, 1)
	go func() { saved <- m.save() }()
	err := m.cfg.FDs.Put(e.storeName(), fds)
	return errors.Join(err, <-saved)
}

func (m *Manager) byToken(token string) *entry {
	if token == "" {
		return nil
	}
	for _, e := range m.byKey {
		if e.Token == token {
			return e
		}
	}
	return nil
}

// open makes a port of the queues and routes the pod's addresses to it, in an
// order that is closed until all is in place: the port's guards come with it, and
// nothing reaches it before its routes. It owns fds.
func (m *Manager) open(e *entry, fds []int, f tap.Features) error {
	queues, err := m.openQueues(fds, f)
	if err != nil {
		return err
	}
	port, err := m.cfg.Ports.AddPort(vswitch.PortConfig{
		Kind: vswitch.PortPod, Name: e.Port, MAC: e.MAC, Addrs: e.Addrs,
		MTUBytes: e.MTUBytes, Queues: queues, JoinDatagrams: f.Has(tap.USO),
	})
	if err != nil {
		return err
	}
	for _, a := range e.Addrs {
		m.cfg.Routes.SetHost(a, fib.NextHop{Kind: fib.Port, Index: port})
	}
	if err := m.openHostPorts(e); err != nil {
		for _, a := range e.Addrs {
			m.cfg.Routes.DeleteHost(a)
		}
		return errors.Join(err, m.cfg.Ports.RemovePort(port))
	}
	e.port, e.State, e.Token, e.Problem, e.Plain, e.Features = port, Attached, "", "", f&tap.VNet == 0, f
	m.cfg.Publisher.PublishPod(m.Record(&e.Attachment))
	return nil
}

// Record is what the cluster is told of an attached pod.
func (m *Manager) Record(a *Attachment) *corev1.Pod {
	return control.NewPod(control.PodInfo{
		Node: m.cfg.Node, Namespace: a.Pod.Namespace, Name: a.Pod.Name, UID: a.Pod.UID, Labels: a.Pod.Labels,
		ContainerID: a.ContainerID, Interface: a.Ifname, Addrs: a.Addrs, MAC: a.MAC,
	})
}

func (m *Manager) openQueues(fds []int, f tap.Features) ([]vswitch.Queue, error) {
	var queues []vswitch.Queue
	for i, fd := range fds {
		q, err := m.cfg.OpenQueue(fd, f)
		if err != nil {
			closeAll(fds[i:])
			for _, q := range queues {
				err = errors.Join(err, q.Close())
			}
			return nil, err
		}
		queues = append(queues, q)
	}
	return queues, nil
}

// detach takes an attachment's routes, port, flows and descriptors away.
func (m *Manager) detach(e *entry) error {
	var errs []error
	if e.State == Attached {
		m.closeHostPorts(e)
		for _, a := range e.Addrs {
			m.cfg.Routes.DeleteHost(a)
		}
		errs = append(errs, m.cfg.Ports.RemovePort(e.port))
	}
	// Connections may be known from an earlier process, without the pod having come back.
	m.cfg.Forget(e.Addrs)
	m.cfg.Publisher.UnpublishPod(control.PodKey(m.cfg.Node, e.ContainerID, e.Ifname))
	errs = append(errs, m.cfg.FDs.Remove(e.storeName()))
	e.State, e.Token = Detached, newToken()
	return errors.Join(errs...)
}

// Died is told that a port's device is gone. The attachment stays, detached,
// until it is deleted or its namespace is seen to be gone.
func (m *Manager) Died(port string, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.byKey {
		if e.Port != port || e.State != Attached {
			continue
		}
		m.cfg.Log.Info("pod's device is gone", "pod", e.podName(), "port", port, "err", cause)
		if err := m.detach(e); err != nil {
			m.cfg.Log.Warn("pod detached with errors", "pod", e.podName(), "err", err)
		}
		e.Problem = fmt.Sprintf("its interface %s is gone (%v); the pod has to be made anew", e.Ifname, cause)
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
