package sdnotify

import (
	"errors"
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
// A set of descriptors under one name is as many entries there, "NAME#ID.0/COUNT",
// "#ID.1/COUNT" and so on: a store neither keeps order nor tells whether a set is whole.
// It refuses, silently, a descriptor that it has already, so what is replaced is taken
// out first.
//
// The next process gets all entries' names in one variable, which is why only the first
// of a set says its name: where they come to more than the kernel passes on, the manager
// can't start that process at all (execve(2), E2BIG).
type Store struct {
	fdstore.Memory
	manager *Manager
	log     *slog.Logger

	mu    sync.Mutex     // one change at a time, here and there
	held  map[string]set // what the manager has, by name; guarded by mu, as is all below
	used  int            // descriptors of all of them
	bytes int            // of their entries' names
	last  uint64         // the highest id given
	full  bool           // it was said that there is no room
}

// set is the entries of one name.
type set struct {
	name  string
	id    uint64
	count int
}

// entry is the name of one.
func (s set) entry(i int) string {
	name := ""
	if i == 0 {
		name = s.name
	}
	return fmt.Sprintf("%s#%s.%d/%d", name, strconv.FormatUint(s.id, idBase), i, s.count)
}

// bytes is what its entries take of LISTEN_FDNAMES, a separator each.
func (s set) bytes() (n int) {
	for i := range s.count {
		n += len(s.entry(i)) + 1
	}
	return n
}

const (
	idBase = 36 // the most that strconv has
	// maxSet bounds what an entry's name may claim.
	maxSet = 1 << 10
	// maxNamesBytes is what LISTEN_FDNAMES may hold. Linux takes 32 pages for a variable
	// with its name (MAX_ARG_STRLEN in linux/binfmts.h), of which this leaves one to
	// what sockets the unit may have.
	maxNamesBytes = 31 << 12
)

var _ fdstore.Store = (*Store)(nil)

// KeepsDescriptors reports whether the manager has a store, or has passed descriptors.
func (m *Manager) KeepsDescriptors() bool { return m != nil && (m.room > 0 || len(m.passed) > 0) }

// NewStore makes a store of what the manager passed to this process. It is called once.
func (m *Manager) NewStore(log *slog.Logger) (*Store, error) {
	s := &Store{manager: m, log: log, held: map[string]set{}}
	sets := map[uint64]*found{}
	for entry, fd := range m.passed {
		e, i, ok := parseEntry(entry)
		if ok && sets[e.id] == nil {
			sets[e.id] = &found{set: e, fds: slices.Repeat([]int{-1}, e.count)}
		}
		f := sets[e.id]
		if !ok || f.count != e.count || f.fds[i] >= 0 {
			log.Warn("a descriptor from the service manager is none of ours", "name", entry)
			s.forget(entry)
			unix.Close(fd)
			continue
		}
		if f.fds[i] = fd; i == 0 {
			f.name = e.name
		}
		s.last = max(s.last, e.id)
	}
	m.passed = nil
	for _, f := range sets {
		var err error
		if slices.Contains(f.fds, -1) {
			log.Warn("the service manager has lost descriptors", "name", f.name, "of", f.count)
			for i := range f.count {
				s.forget(f.entry(i))
			}
		} else {
			s.hold(f.set)
			err = s.Memory.Put(f.name, f.fds)
		}
		for _, fd := range f.fds {
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

// forget has the manager let go of an entry of no use, which would take room for ever.
func (s *Store) forget(entry string) {
	if err := s.manager.remove(entry); err != nil {
		s.log.Warn("a descriptor stays with the service manager", "name", entry, "err", err)
	}
}

func (m *Manager) remove(entry string) error { return m.Notify("FDSTOREREMOVE=1", "FDNAME="+entry) }

// found is a set as it was passed; -1: missing.
type found struct {
	set
	fds []int
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
	s.last++
	e := set{name, s.last, len(fds)}
	if room := s.manager.room; s.used+e.count > room || s.bytes+e.bytes() > maxNamesBytes {
		if !s.full {
			s.log.Warn("the service manager's descriptor store is full: what comes now is lost when this process ends", "descriptors", s.used, "FileDescriptorStoreMax", room, "namesBytes", s.bytes, "namesBytesMax", maxNamesBytes)
		}
		s.full = true
		return nil
	}
	s.hold(e)
	for i, fd := range fds {
		entry := e.entry(i)
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

// hold notes what the manager has. Callers hold mu.
func (s *Store) hold(e set) {
	s.held[e.name] = e
	s.used, s.bytes = s.used+e.count, s.bytes+e.bytes()
}

// release takes a name out of the manager's store. Callers hold mu.
func (s *Store) release(name string) error {
	e, ok := s.held[name]
	if !ok {
		return nil
	}
	for i := range e.count {
		if err := s.manager.remove(e.entry(i)); err != nil {
			return err
		}
	}
	delete(s.held, name)
	s.used, s.bytes = s.used-e.count, s.bytes-e.bytes()
	return nil
}

// parseEntry reads what set.entry wrote; only the first entry of a set has its name.
func parseEntry(entry string) (e set, i int, ok bool) {
	at := strings.LastIndexByte(entry, '#')
	if at < 0 {
		return set{}, 0, false
	}
	id, rest, _ := strings.Cut(entry[at+1:], ".")
	index, count, _ := strings.Cut(rest, "/")
	var errs [3]error
	e.name = entry[:at]
	e.id, errs[0] = strconv.ParseUint(id, idBase, 64)
	i, errs[1] = strconv.Atoi(index)
	e.count, errs[2] = strconv.Atoi(count)
	ok = errors.Join(errs[:]...) == nil && 0 <= i && i < e.count && e.count <= maxSet &&
		e.entry(i) == entry && (i > 0 || fdstore.CheckName(e.name) == nil)
	return e, i, ok
}
