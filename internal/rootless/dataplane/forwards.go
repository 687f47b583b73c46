package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdstore"
	"vswitch/internal/rootless/slirp"
	"vswitch/vswitch/gateway"
)

// Ports that are asked for by the API socket. The keeper has a list of them, so that
// they are open again should this process crash.

// Names in the keeper.
const (
	APIName      = "api"      // the listening socket
	forwardsName = "forwards" // a file in memory: the list as JSON
)

// forwards implements slirp.Forwards.
type forwards struct {
	publisher *publisher
	gateway   statusPorts
	keeper    fdstore.Store
	all       []slirp.Forward
	lastID    int
}

// statusPorts is the part of the gateway that also says what became of a port.
type statusPorts interface {
	hostPorts
	Listeners() []gateway.ListenerStatus
}

// serveAPI answers requests until stop is called.
func serveAPI(ctx context.Context, cfg *Config, g statusPorts) (stop func(), err error) {
	fds, err := cfg.Keeper.Get(APIName)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fds[0]), "api")
	l, err := net.FileListener(file)
	file.Close() // the listener has a duplicate
	if err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the keeper has it still
	f := &forwards{publisher: newPublisher(cfg, g), gateway: g, keeper: cfg.Keeper}
	if err := f.restore(); err != nil {
		cfg.Log.Error("forwarded ports are lost", "err", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() { slirp.Serve(ctx, l, f, cfg.Log) })
	return func() { cancel(); serving.Wait() }, nil
}

// Add implements slirp.Forwards.
func (f *forwards) Add(w slirp.Forward) (int, error) {
	own := f.publisher.own
	i := slices.IndexFunc(own, func(a netip.Addr) bool { return a.Is4() == w.HostAddr.Is4() })
	if i < 0 {
		return 0, fmt.Errorf("host_addr %v: the namespace has no address of this family", w.HostAddr)
	}
	if !w.GuestAddr.IsValid() || w.GuestAddr.IsUnspecified() {
		w.GuestAddr = own[i]
	}
	if !slices.Contains(own, w.GuestAddr) {
		return 0, fmt.Errorf("guest_addr %v: the namespace has %v", w.GuestAddr, own)
	}
	key := keyOf(&w)
	for _, o := range f.all {
		if keyOf(&o) == key {
			return 0, fmt.Errorf("%s is forwarded already", describe(key))
		}
	}
	if err := f.open(&w); err != nil {
		return 0, err
	}
	f.lastID++
	w.ID = f.lastID
	f.all = append(f.all, w)
	if err := f.keep(); err != nil {
		f.gateway.DeleteHostPort(key)
		f.all = f.all[:len(f.all)-1]
		return 0, err
	}
	return w.ID, nil
}

func keyOf(w *slirp.Forward) gateway.HostPortKey {
	return gateway.HostPortKey{Pod: portName, HostIP: w.HostAddr, Port: w.HostPort, Protocol: protocolOf(w.Protocol == "udp")}
}

// open opens a port at every address that it is to have, or none.
func (f *forwards) open(w *slirp.Forward) error {
	key := keyOf(w)
	to := gateway.Endpoint{Addr: w.GuestAddr, Port: w.GuestPort, ID: 1}
	if err := f.gateway.PutHostPort(gateway.HostPort{HostPortKey: key, Endpoints: []gateway.Endpoint{to}}); err != nil {
		return err
	}
	opened := 0
	for _, l := range f.gateway.Listeners() {
		if l.Addr.Port() != key.Port || l.Protocol != key.Protocol || !key.HostIP.IsUnspecified() && l.Addr.Addr() != key.HostIP {
			continue
		}
		if l.Err != nil {
			f.gateway.DeleteHostPort(key)
			return fmt.Errorf("%v: %w", l.Addr, l.Err)
		}
		opened++
	}
	if opened == 0 {
		f.gateway.DeleteHostPort(key)
		return fmt.Errorf("host_addr %v: no address of this host", w.HostAddr)
	}
	return nil
}

// Remove implements slirp.Forwards.
func (f *forwards) Remove(id int) error {
	i := slices.IndexFunc(f.all, func(w slirp.Forward) bool { return w.ID == id })
	if i < 0 {
		return fmt.Errorf("no forwarded port has the id %d", id)
	}
	f.gateway.DeleteHostPort(keyOf(&f.all[i]))
	f.all = slices.Delete(f.all, i, i+1)
	return f.keep()
}

// List implements slirp.Forwards.
func (f *forwards) List() []slirp.Forward { return f.all }

type keptForwards struct {
	LastID   int             `json:"lastID"`
	Forwards []slirp.Forward `json:"forwards"`
}

// keep gives the keeper the list.
func (f *forwards) keep() error {
	text, err := json.Marshal(keptForwards{f.lastID, f.all})
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate(forwardsName, unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, text, 0); err != nil {
		return fmt.Errorf("write the list: %w", err)
	}
	return f.keeper.Put(forwardsName, []int{fd})
}

// restore opens what a process before this one had.
func (f *forwards) restore() error {
	fds, err := f.keeper.Get(forwardsName)
	if errors.Is(err, fdstore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fds[0])
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		return err
	}
	text := make([]byte, st.Size)
	if _, err := unix.Pread(fds[0], text, 0); err != nil {
		return err
	}
	var kept keptForwards
	if err := json.Unmarshal(text, &kept); err != nil {
		return err
	}
	f.lastID = kept.LastID
	var errs []error
	for _, w := range kept.Forwards {
		if err := f.open(&w); err != nil {
			errs = append(errs, err)
			continue
		}
		f.all = append(f.all, w)
	}
	return errors.Join(errs...)
}
