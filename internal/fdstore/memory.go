package fdstore

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Memory is a Store inside the process. The zero value is ready to use.
type Memory struct {
	mu   sync.Mutex
	held map[string][]int // guarded by mu
}

var _ Store = (*Memory)(nil)

// Put implements Store.
func (m *Memory) Put(name string, fds []int) error {
	if err := CheckName(name); err != nil {
		return err
	}
	kept, err := duplicate(fds)
	if err != nil {
		return fmt.Errorf("fdstore: put %q: %w", name, err)
	}
	m.mu.Lock()
	if m.held == nil {
		m.held = make(map[string][]int)
	}
	old := m.held[name]
	m.held[name] = kept
	m.mu.Unlock()
	closeAll(old)
	return nil
}

// Get implements Store.
func (m *Memory) Get(name string) ([]int, error) {
	m.mu.Lock()
	defer m.mu.Unlock() // over the duplication too: Remove must not close under it
	held, ok := m.held[name]
	if !ok {
		return nil, fmt.Errorf("fdstore: get %q: %w", name, ErrNotFound)
	}
	fds, err := duplicate(held)
	if err != nil {
		return nil, fmt.Errorf("fdstore: get %q: %w", name, err)
	}
	return fds, nil
}

// Remove implements Store.
func (m *Memory) Remove(name string) error {
	m.mu.Lock()
	old := m.held[name]
	delete(m.held, name)
	m.mu.Unlock()
	closeAll(old)
	return nil
}

// Names implements Store.
func (m *Memory) Names() ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.held)), nil
}

// Close closes every descriptor held. The store is empty afterwards, and usable.
func (m *Memory) Close() error {
	m.mu.Lock()
	held := m.held
	m.held = nil
	m.mu.Unlock()
	for _, fds := range held {
		closeAll(fds)
	}
	return nil
}

func duplicate(fds []int) ([]int, error) {
	dups := make([]int, 0, len(fds))
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(dups)
			return nil, fmt.Errorf("duplicate descriptor %d: %w", fd, err)
		}
		dups = append(dups, dup)
	}
	return dups, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
