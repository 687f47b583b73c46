package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"vswitch/control"
)

// pageSize is how many records one request of a full list asks for.
const pageSize = 2000

// mirror keeps the sink at what the store holds: a full list, then deltas from its
// revision on. Whatever breaks the chain of deltas (compaction, a store that lost
// its data) leads to another list; a broken connection does not, as the client
// takes up the watch where it was.
func (s *Store) mirror(ctx context.Context) error {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		revision, objs, err := s.listAll(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			s.reachable(false, s.wrap(err))
			pause(ctx, attempt)
			continue
		}
		attempt = 0
		s.reachable(true, nil)
		s.tell(func(sink control.Sink) { sink.Reset(s.pods.merge(objs)) })
		if err := s.follow(ctx, revision+1); err != nil && ctx.Err() == nil {
			s.log.Info("store: listing anew", "why", err)
			pause(ctx, 0)
		}
	}
	return nil
}

// startOver has the mirror list anew.
func (s *Store) startOver() {
	select {
	case s.relist <- struct{}{}:
	default:
	}
}

// listAll reads everything at one revision, page by page.
func (s *Store) listAll(ctx context.Context) (revision int64, objs []control.Object, err error) {
	from, end := s.cfg.Prefix, clientv3.GetPrefixRangeEnd(s.cfg.Prefix)
	for {
		rctx, cancel := s.request(ctx)
		r, err := s.client.Get(rctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
		cancel()
		if err != nil {
			return 0, nil, err
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			if _, ok := s.parseKey(string(kv.Key)); !ok {
				continue
			}
			o, err := s.decode(kv)
			if err != nil {
				s.log.Error("record in the store is not readable", "err", err)
				continue
			}
			objs = append(objs, o)
		}
		if !r.More {
			return revision, objs, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

var errRelist = errors.New("asked to")

// follow hands deltas to the sink until they end.
func (s *Store) follow(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := s.client.Watch(clientv3.WithRequireLeader(ctx), s.cfg.Prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.relist:
			return errRelist
		case r, ok := <-events:
			if !ok {
				return errors.New("the watch ended")
			}
			if err := r.Err(); err != nil {
				return err
			}
			s.deliver(r.Events)
		}
	}
}

// deliver reduces events to the last of every key, as a sink takes all puts before
// all deletes.
func (s *Store) deliver(events []*clientv3.Event) {
	last := make(map[string]*clientv3.Event, len(events))
	order := make([]string, 0, len(events))
	for _, e := range events {
		k := string(e.Kv.Key)
		if _, seen := last[k]; !seen {
			order = append(order, k)
		}
		last[k] = e
	}
	var puts []control.Object
	var deletes []control.Key
	for _, k := range order {
		key, ok := s.parseKey(k)
		if !ok || s.pods.owns(key) {
			continue
		}
		e := last[k]
		if e.Type == mvccpb.DELETE {
			deletes = append(deletes, key)
			continue
		}
		o, err := s.decode(e.Kv)
		if err != nil {
			s.log.Error("record in the store is not readable", "err", err)
			continue
		}
		puts = append(puts, o)
	}
	if len(puts)+len(deletes) > 0 {
		s.tell(func(sink control.Sink) { sink.Update(puts, deletes) })
	}
}
