// Package share divides a fixed amount among holders that come and go, so that
// whoever asks for much always leaves something for whoever asks for little.
//
// It knows neither time nor queues: what is refused is refused at once.
package share

import "sync"

// Pool is an amount of one thing, such as bytes or questions in progress, and who
// holds how much of it. Its methods may be called from any goroutine.
//
// A holder may have as much as it leaves free, no more (a dynamic threshold, as
// shared-memory switches use it: Choudhury and Hahne, 1998). With n holders that
// take all they get each has 1/(n+1) of the pool, and so much is free for the next
// one. No list of holders has to be known and no share has to be configured.
type Pool[K comparable] struct {
	capacity int64

	mu    sync.Mutex
	taken int64       // guarded by mu
	held  map[K]int64 // guarded by mu; a holder of nothing has no entry
}

// New makes a pool of a capacity above zero.
func New[K comparable](capacity int64) *Pool[K] {
	return &Pool[K]{capacity: capacity, held: make(map[K]int64)}
}

// Take gives n, zero or more, to k; false: k may not have that much more now.
func (p *Pool[K]) Take(k K, n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > 0 && p.held[k]+n > p.capacity-p.taken-n {
		return false
	}
	p.add(k, n)
	return true
}

// Give takes n back from k, which must hold that much.
func (p *Pool[K]) Give(k K, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(k, -n)
}

// add changes what k holds. Callers hold mu.
func (p *Pool[K]) add(k K, n int64) {
	if p.held[k] += n; p.held[k] < 0 {
		panic("share: more given back than was taken")
	}
	p.taken += n
	if p.held[k] == 0 {
		delete(p.held, k)
	}
}

// Taken is how much all holders have.
func (p *Pool[K]) Taken() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// Held is how much k has.
func (p *Pool[K]) Held(k K) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[k]
}
