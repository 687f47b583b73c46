package sdnotify

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdstore"
)

// Store keeps descriptors here and in the manager's store. What the manager has no
// room for, or does not take, is kept here all the same: it ends with the process, and
// the log says so.
//
// A set of descriptors under one name is as many entries there, "NAME#INDEX/COUNT": a
// store neither keeps order nor tells whether a set is whole. It refuses, silently, a
// descriptor that it has already, so what is replaced is taken out first.
type Store struct {
	fdstore.Memory
	manager *Manager
	log     *slog.Logger

	mu   sync.Mutex     // one change at a time, here and there
	held map[string]int // how many descriptors of a name the manager has; guarded by mu
	used int            // all of them; guarded by mu
	full bool           // it was said that there is no room; guarded by mu
}

var _ fdstore.Store = (*Store)(nil)

// KeepsDescriptors reports whether the manager has a store, or has passed descriptors.
func (m *Manager) KeepsDescriptors() bool { return m != nil && (m.room > 0 || len(m.passed) > 0) }

// NewStore makes a store of what the manager passed to this process. It is called once.
func (m *Manager) NewStore(log *slog.Logger) (*Store, error) {
	s := &Store{manager: m, log: log, held: map[string]int{}}
	sets := map[string][]int{} // by name, in order; -1: missing
	for entry, fd := range m.passed {
		name, i, n, ok := parseEntry(entry)
		if set := sets[name]; !ok || set != nil && len(set) != n {
			log.Warn("a descriptor from the service manager is none of ours", "name", entry)
			unix.Close(fd)
			continue
		}
		if sets[name] == nil {
			sets[name] = slices.Repeat([]int{-1}, n)
		}
		sets[name][i] = fd
	}
	m.passed = nil
	for name, fds := range sets {
		s.held[name], s.used = len(fds), s.used+len(fds)
		var err error
		if slices.Contains(fds, -1) {
			log.Warn("the service manager has lost descriptors", "name", name, "of", len(fds))
			err = s.Remove(name)
		} else {
			err = s.Memory.Put(name, fds)
		}
		for _, fd := range fds {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Put implements fdstore.Store.
func (s *Store) Put(name string, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.Memory.Put(name, fds); err != nil {
		return err
	}
	if err := s.release(name); err != nil {
		s.log.Warn("a descriptor is not safe with the service manager", "name", name, "err", err)
		return nil
	}
	if s.used+len(fds) > s.manager.room {
		if !s.full {
			s.log.Warn("the service manager's descriptor store is full: what comes now is lost when this process ends; want a larger FileDescriptorStoreMax", "room", s.manager.room)
		}
		s.full = true
		return nil
	}
	s.held[name], s.used = len(fds), s.used+len(fds)
	for i, fd := range fds {
		entry := entryName(name, i, len(fds))
		err := fdstore.CheckName(entry)
		if err == nil {
			// Without FDPOLL=0 a device or socket that reports an error would be dropped.
			err = s.manager.send(fd, "FDSTORE=1", "FDNAME="+entry, "FDPOLL=0")
		}
		if err != nil {
			s.log.Warn("a descriptor is not safe with the service manager", "name", name, "err", err)
			return nil
		}
	}
	return nil
}

// Remove implements fdstore.Store.
func (s *Store) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.release(name); err != nil {
		s.log.Warn("a descriptor stays with the service manager", "name", name, "err", err)
	}
	return s.Memory.Remove(name)
}

// release takes a name out of the manager's store. Callers hold mu.
func (s *Store) release(name string) error {
	n := s.held[name]
	for i := range n {
		if err := s.manager.Notify("FDSTOREREMOVE=1", "FDNAME="+entryName(name, i, n)); err != nil {
			return err
		}
	}
	delete(s.held, name)
	s.used -= n
	return nil
}

func entryName(name string, i, n int) string { return fmt.Sprintf("%s#%d/%d", name, i, n) }

// maxSet bounds what an entry's name may claim.
const maxSet = 1 << 10

func parseEntry(entry string) (name string, i, n int, ok bool) {
	at := strings.LastIndexByte(entry, '#')
	if at < 0 {
		return "", 0, 0, false
	}
	index, count, _ := strings.Cut(entry[at+1:], "/")
	i, err := strconv.Atoi(index)
	n, countErr := strconv.Atoi(count)
	name = entry[:at]
	if err != nil || countErr != nil || n < 1 || n > maxSet || i < 0 || i >= n || entryName(name, i, n) != entry || fdstore.CheckName(name) != nil {
		return "", 0, 0, false
	}
	return name, i, n, true
}
