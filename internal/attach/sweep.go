package attach

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// Sweep does what time asks for: it forgets attachments that stayed pending too
// long, and releases those whose network namespace has gone without a DEL.
//
// An open TAP pins its namespace (the descriptor holds a reference,
// drivers/net/tun.c), so a vanished pod's device never reports an error: only the
// namespace's path tells. A path counts as gone when this process has seen it, at ADD
// or later, and missed it twice: a daemon in another mount namespace may see none of
// them, and a runtime may bind one anew. Call it every few seconds.
func (m *Manager) Sweep(now time.Time) {
	for _, k := range m.gone() {
		m.mu.Lock()
		e := m.byKey[k]
		if e != nil && e.missing {
			m.cfg.Log.Warn("pod's network namespace is gone", "pod", e.podName(), "netns", e.Netns)
			m.removeLogged(e)
		}
		m.mu.Unlock()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.byKey {
		if e.State == Pending && now.After(e.expires) {
			m.cfg.Log.Warn("pod's queues never came", "pod", e.podName())
			m.removeLogged(e)
		}
	}
}

func (m *Manager) removeLogged(e *entry) {
	if err := m.remove(e); err != nil {
		m.cfg.Log.Error("pod not removed", "pod", e.podName(), "err", err)
	}
}

// gone looks at every namespace path, outside the mutex, and lists those missed
// for the second time.
func (m *Manager) gone() []Key {
	var gone []Key
	for _, a := range m.List() {
		_, err := os.Lstat(a.Netns)
		absent := errors.Is(err, fs.ErrNotExist)
		m.mu.Lock()
		if e := m.byKey[a.Key]; e != nil {
			switch {
			case err == nil:
				e.seen, e.missing = true, false
			case absent && e.seen && e.missing:
				gone = append(gone, a.Key)
			case absent && e.seen:
				e.missing = true
			}
		}
		m.mu.Unlock()
	}
	return gone
}
