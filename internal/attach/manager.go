package attach

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"vswitch/control/statefile"
	"vswitch/internal/fdstore"
	"vswitch/vswitch/frame"
)

// Config is what a Manager works with. All but Log is required.
type Config struct {
	Node      string
	Ports     Ports
	Routes    Routes
	Publisher Publisher
	// HostPorts is nil where this node gives pods no ports of the host.
	HostPorts HostPorts
	FDs       fdstore.Store
	OpenQueue OpenQueue
	// Forget drops the flows of a pod that has gone: those that name one of its addresses.
	Forget func(addrs []netip.Addr)
	// Attached is told when the queues of a new attachment have come: how long after
	// Add. Nil: nobody asks.
	Attached func(after time.Duration)
	// Records keeps the attachments beyond the daemon.
	Records Records
	// MTUBytes and Queues are what new attachments get.
	MTUBytes int
	Queues   int
	// Timeout is how long an attachment stays pending.
	Timeout time.Duration
	Log     *slog.Logger
}

// Manager owns the attachments. Its methods may be called from any goroutine.
//
// One mutex covers all: what runs under it are a few system calls per pod and the
// writing of a small file, not once per frame, and in exchange no step of one
// attachment is ever seen by another half done.
type Manager struct {
	cfg Config

	mu     sync.Mutex
	leases Leases // nil until the node has its pod CIDR; guarded by mu, as is all below
	byKey  map[Key]*entry
	// restored: what the fd store kept is open again.
	restored bool
	closed   bool
}

// entry is an attachment and what only the manager knows of it.
type entry struct {
	Attachment
	port    uint32    // valid while Attached
	added   time.Time // zero if it is from before this process
	expires time.Time // valid while Pending
	missing bool      // the namespace's path was there and is gone, as of the last sweep
	seen    bool      // this process has seen the namespace's path
}

// New makes a manager of the attachments that survived in the records. Those
// whose queues the fd store still holds are opened again by Restore; the others
// wait, detached, for vswitch-cni reattach.
func New(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, byKey: map[Key]*entry{}}
	kept, err := cfg.Records.Load()
	var damaged *statefile.DamagedError
	switch {
	case errors.As(err, &damaged):
		cfg.Log.Error("attachments are lost; pods need to be made anew", "err", err)
	case err != nil:
		return nil, fmt.Errorf("attach: %w", err)
	}
	for _, a := range kept {
		a.State, a.Token, a.Queues, a.Port = Detached, newToken(), cfg.Queues, portName(&a)
		a.Problem = "its queues went with an earlier daemon; vswitch-cni reattach brings them back"
		m.byKey[a.Key] = &entry{Attachment: a}
	}
	return m, nil
}

// Serve lets Add lease from l from now on, once l agrees with the records, which are what
// counts: l may lack what happened just before a daemon was killed, and have what was
// undone. An attachment whose addresses another has is dropped.
func (m *Manager) Serve(l Leases) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leases = l
	for _, h := range l.Holders() {
		l.Release(h)
	}
	var errs []error
	for _, e := range m.byKey {
		if err := l.Hold(holder(e.Key), e.Addrs); err != nil {
			m.cfg.Log.Error("pod's addresses are another's", "pod", e.podName(), "addr", e.Addrs, "err", err)
			errs = append(errs, m.remove(e))
		}
	}
	return errors.Join(errs...)
}

// Restore opens again what the fd store kept, has it let go of queues without a record,
// and returns every pod that has an interface, for the cluster to be told.
func (m *Manager) Restore() []Attachment {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restored = true
	for _, e := range m.byKey {
		fds, err := m.cfg.FDs.Get(e.storeName())
		if err != nil {
			continue // not there: it waits for reattach
		}
		if len(fds) != e.Queues { // another number of workers now: the plugin opens as many
			closeAll(fds)
			continue
		}
		// The store keeps descriptors only. Other features would be a change that the
		// pod sees.
		if err := m.open(e, fds, e.Features); err != nil {
			m.cfg.Log.Warn("pod not restored", "pod", e.podName(), "err", err)
		}
	}
	if err := m.releaseStrays(); err != nil {
		m.cfg.Log.Warn("queues of no pod are still kept", "err", err)
	}
	return m.list()
}

// releaseStrays takes queues out of the fd store that no record is of: a process that was
// killed in the middle of Attach leaves such. They would keep the pod's namespace alive.
func (m *Manager) releaseStrays() error {
	names, err := m.cfg.FDs.Names()
	if err != nil {
		return err
	}
	known := make(map[string]bool, len(m.byKey))
	for _, e := range m.byKey {
		known[e.storeName()] = true
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, storePrefix) && !known[name] {
			errs = append(errs, m.cfg.FDs.Remove(name))
		}
	}
	return errors.Join(errs...)
}

// Add leases addresses for a new attachment, pending until its queues come. Errors:
// *InvalidError, ErrExists, ErrPortUsed, ErrNotReady, ErrExhausted, or what the
// disk said.
func (m *Manager) Add(r Request) (Attachment, error) {
	if err := r.validate(); err != nil {
		return Attachment{}, err
	}
	// A runtime that fails next may take the namespace away before it is swept.
	_, err := os.Lstat(r.Netns)
	seen := err == nil
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.leases == nil || m.closed:
		return Attachment{}, ErrNotReady
	case m.sameInterface(r.Key) != nil:
		return Attachment{}, fmt.Errorf("%w: %v", ErrExists, r.Key)
	}
	if err := m.checkPorts(&r); err != nil {
		return Attachment{}, err
	}
	addrs, err := m.leases.Lease(holder(r.Key))
	if err != nil {
		return Attachment{}, err
	}
	now := time.Now()
	e := &entry{
		Attachment: Attachment{
			Key: r.Key, Netns: r.Netns, Pod: r.Pod, Ports: r.Ports, Host: r.Host, Addrs: addrs, MAC: newMAC(),
			MTUBytes: m.cfg.MTUBytes, Queues: m.cfg.Queues, State: Pending, Token: newToken(),
		},
		added: now, expires: now.Add(m.cfg.Timeout), seen: seen,
	}
	e.Port = portName(&e.Attachment)
	m.byKey[r.Key] = e
	m.cfg.Log.Info("pod added", "pod", e.podName(), "addr", addrs)
	return e.Attachment, nil
}

// sameInterface finds an attachment of the same interface of the same container,
// on whatever network: the kernel has one device of a name.
func (m *Manager) sameInterface(k Key) *entry {
	for _, e := range m.byKey {
		if e.ContainerID == k.ContainerID && e.Ifname == k.Ifname {
			return e
		}
	}
	return nil
}

// Delete removes an attachment in any state and frees its addresses. One that
// isn't there is no error.
func (m *Manager) Delete(k Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.remove(m.byKey[k])
}

// remove ends an attachment: no frame goes in or out before its address is free
// for another pod. Callers hold mu; nil is nothing to do.
func (m *Manager) remove(e *entry) error {
	if e == nil {
		return nil
	}
	recorded := e.State != Pending
	err := m.detach(e)
	if m.leases != nil { // without: Serve frees what nobody holds
		m.leases.Release(holder(e.Key))
	}
	delete(m.byKey, e.Key)
	m.cfg.Log.Info("pod removed", "pod", e.podName(), "addr", e.Addrs)
	if recorded {
		err = errors.Join(err, m.save())
	}
	return err
}

// Get finds one attachment, without its token.
func (m *Manager) Get(k Key) (Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.byKey[k]
	if e == nil {
		return Attachment{}, fmt.Errorf("%w: %v", ErrNotFound, k)
	}
	a := e.Attachment
	a.Token = ""
	return a, nil
}

// List is every attachment, by port name.
func (m *Manager) List() []Attachment {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list()
}

// Lost are the attachments whose queues are gone, for reattach to bring new ones:
// none that an ADD is on the way to bring. Before Restore it can't be told which they
// are: ErrNotReady.
func (m *Manager) Lost() ([]Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.restored {
		return nil, ErrNotReady
	}
	return slices.DeleteFunc(m.list(), func(a Attachment) bool { return a.State != Detached }), nil
}

func (m *Manager) list() []Attachment {
	all := make([]Attachment, 0, len(m.byKey))
	for _, e := range m.byKey {
		all = append(all, e.Attachment)
	}
	slices.SortFunc(all, func(a, b Attachment) int { return strings.Compare(a.Port, b.Port) })
	return all
}

// Failure is an attachment that GC could not remove.
type Failure struct {
	Key Key
	Err error
}

// GC removes the attachments of a network that are not in valid, and goes on
// after an error.
func (m *Manager) GC(network string, valid []Key) (removed []Attachment, failed []Failure) {
	keep := map[Key]bool{}
	for _, k := range valid {
		k.Network = network
		keep[k] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.list() {
		if a.Network != network || keep[a.Key] {
			continue
		}
		if err := m.remove(m.byKey[a.Key]); err != nil {
			failed = append(failed, Failure{a.Key, err})
			continue
		}
		a.Token = ""
		removed = append(removed, a)
	}
	return removed, failed
}

// Close lets nothing in any more. Ports are the switch's to close; attachments
// and their records stay, for the next daemon.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
}

// Save writes the records, which every change does by itself: for when the file has gone.
func (m *Manager) Save() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.save()
}

func (m *Manager) save() error {
	all := slices.DeleteFunc(m.list(), func(a Attachment) bool { return a.State == Pending })
	return m.cfg.Records.Save(all)
}

// holder names a lease. The parts can't hold the separator.
func holder(k Key) string { return k.Network + "/" + k.ContainerID + "/" + k.Ifname }

// portName is unique: one container has one interface of a name.
func portName(a *Attachment) string {
	return a.Pod.Namespace + "/" + a.Pod.Name + "/" + a.ContainerID + "/" + a.Ifname
}

func (e *entry) podName() string { return e.Pod.Namespace + "/" + e.Pod.Name }

// storePrefix begins the names of queues in the fd store.
const storePrefix = "tap/"

// storeName is the name of the queues in the fd store.
func (e *entry) storeName() string { return storePrefix + e.ContainerID + "/" + e.Ifname }

// newToken is 128 random bits: who has it may hand in the queues.
func newToken() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func newMAC() frame.MAC {
	var b [6]byte
	rand.Read(b[:])
	return frame.LocalMAC(b)
}
