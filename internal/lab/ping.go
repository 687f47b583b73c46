package lab

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// pingPatience is how long n answers may take, which is a matter of the machine's load.
const pingPatience = 20 * time.Second

var pingAnswer = regexp.MustCompile(`(?m)icmp_seq=(\d+) .*time=`)

// Ping has the ping program send echo requests, one each interval, until n are
// answered, and fails unless these are the first n, each answered once. It looks
// at their numbers: on a busy machine ping sends more than n meanwhile and counts
// as lost what is under way when it ends.
func (n *Namespace) Ping(ctx context.Context, to netip.Addr, count int, interval time.Duration) error {
	out, err := n.Exec(ctx, Command{Path: "ping", Args: []string{
		"-n", "-c", strconv.Itoa(count), "-i", strconv.FormatFloat(interval.Seconds(), 'f', -1, 64),
		"-w", strconv.Itoa(int(pingPatience.Seconds())), to.String(),
	}})
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return everyAnswer(string(out), count)
}

// everyAnswer fails unless ping's output has an answer to each of the first count
// requests, and one only.
func everyAnswer(out string, count int) error {
	var seen []int
	for _, m := range pingAnswer.FindAllStringSubmatch(out, -1) {
		seq, err := strconv.Atoi(m[1])
		if err != nil {
			return fmt.Errorf("ping: %q: %w", m[0], err)
		}
		seen = append(seen, seq)
	}
	slices.Sort(seen)
	for i := range count {
		if i >= len(seen) || seen[i] != i+1 {
			return fmt.Errorf("ping: requests 1 to %d should be answered once each; these were: %v", count, seen)
		}
	}
	if len(seen) > count && seen[count] == count {
		return fmt.Errorf("ping: request %d is answered twice", count)
	}
	return nil
}
