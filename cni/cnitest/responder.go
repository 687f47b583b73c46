package cnitest

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
	"vswitch/tap"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// responder answers echo requests on one queue until it is closed or the device
// is gone.
type responder struct {
	queue *tap.Queue
	stop  int // eventfd that wakes the loop
	done  sync.WaitGroup
}

// newResponders starts one responder for each queue. It owns the descriptors from
// the call on.
func newResponders(fds []int, features uint32) ([]*responder, error) {
	var all []*responder
	var failure error
	for _, fd := range fds {
		r, err := newResponder(fd, tap.Features(features))
		if err != nil {
			unix.Close(fd)
			failure = err
			continue
		}
		all = append(all, r)
	}
	if failure == nil {
		return all, nil
	}
	for _, r := range all {
		r.close()
	}
	return nil, failure
}

func newResponder(fd int, features tap.Features) (*responder, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	q, err := tap.NewQueue(fd, features)
	if err != nil {
		unix.Close(stop)
		return nil, err
	}
	r := &responder{queue: q, stop: stop}
	r.done.Go(r.run)
	return r, nil
}

// close stops the loop and closes the queue.
func (r *responder) close() {
	unix.Write(r.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	r.done.Wait()
	r.queue.Close()
	unix.Close(r.stop)
}

func (r *responder) run() {
	batch := frame.NewBatch(8)
	polled := []unix.PollFd{
		{Fd: int32(r.queue.PollFD()), Events: unix.POLLIN},
		{Fd: int32(r.stop), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(polled, -1); err != nil && err != unix.EINTR {
			return
		}
		if polled[1].Revents != 0 {
			return
		}
		batch.Reset()
		err := r.queue.Receive(batch)
		for i := range batch.Len() {
			if f := batch.At(i); answer(f) {
				r.queue.Transmit([]*frame.Frame{f})
			}
		}
		if err != nil {
			return // the device was deleted
		}
	}
}

// answer turns an echo request around in place; false for anything else.
func answer(f *frame.Frame) bool {
	var h wire.Headers
	b := f.Bytes()
	if f.Drop != drop.None || wire.Parse(b, &h) != drop.None || !h.IsEcho() || !wire.ICMPIntact(b, &h) {
		return false
	}
	var mac [6]byte
	copy(mac[:], b[:6])
	copy(b[:6], b[6:12])
	copy(b[6:12], mac[:])
	wire.TurnEcho(b, &h)
	return true
}
