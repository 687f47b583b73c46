// Package userns maps ids of a user namespace (user_namespaces(7)), and says why an
// ordinary user can't have one, or can't have a TAP device in it, and what would
// allow it.
//
// It makes no namespace: whoever starts a process in one has its ids mapped here,
// from outside. All of it works without privilege; what more than one id takes is
// done by newuidmap(1) and newgidmap(1), where they are installed.
package userns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// Range maps Size ids from Inside on, as the namespace sees them, to those from
// Outside on.
type Range struct {
	Inside, Outside, Size uint32
}

// IDs are the maps of one namespace.
type IDs struct {
	UIDs, GIDs []Range
	// Lacks is why they are this user's alone, and what would add others; empty: they are
	// not, or that was asked for.
	Lacks string
	// helped: newuidmap and newgidmap write the maps.
	helped bool
}

// allIDs is how many there are: 2^32 - 1 stands for none.
const allIDs = 1<<32 - 1

// Own are the ids that this process may map: for root all that there are here, which
// in a user namespace are those mapped; this user's as root and the ranges that
// /etc/subuid and /etc/subgid grant it, if newuidmap and newgidmap are there to map
// them; or else, or if single is set, this user's alone.
func Own(single bool) (IDs, error) {
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if uid == 0 {
		return here()
	}
	ids := IDs{UIDs: []Range{{0, uid, 1}}, GIDs: []Range{{0, gid, 1}}}
	if single {
		return ids, nil
	}
	if !installed("newuidmap") || !installed("newgidmap") {
		ids.Lacks = "newuidmap and newgidmap are not installed (Debian's package uidmap)"
		return ids, nil
	}
	who := []string{strconv.Itoa(int(uid))}
	if u, err := user.LookupId(who[0]); err == nil {
		who = append(who, u.Username)
	}
	subUIDs, err := granted("/etc/subuid", who)
	if err != nil {
		return ids, err
	}
	subGIDs, err := granted("/etc/subgid", who)
	if err != nil {
		return ids, err
	}
	if len(subUIDs) == 0 || len(subGIDs) == 0 {
		name := who[len(who)-1]
		ids.Lacks = fmt.Sprintf("/etc/subuid and /etc/subgid don't both grant user %s some: a line such as %s:100000:65536 does", name, name)
		return ids, nil
	}
	ids.UIDs, ids.GIDs, ids.helped = append(ids.UIDs, subUIDs...), append(ids.GIDs, subGIDs...), true
	return ids, nil
}

// here are the ids of this process's own user namespace, each as itself.
func here() (ids IDs, err error) {
	for file, ranges := range map[string]*[]Range{"/proc/self/uid_map": &ids.UIDs, "/proc/self/gid_map": &ids.GIDs} {
		text, err := os.ReadFile(file)
		if err != nil {
			return ids, fmt.Errorf("ids of this user namespace: %w", err)
		}
		if *ranges, err = parseMapped(string(text)); err != nil {
			return ids, fmt.Errorf("%s: %w", file, err)
		}
	}
	return ids, nil
}

// parseMapped reads lines of inner id, outer id and count (user_namespaces(7)).
func parseMapped(text string) ([]Range, error) {
	var ranges []Range
	for line := range strings.Lines(text) {
		var inside, outside, size uint32
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err != nil {
			return nil, fmt.Errorf("line %q: want three numbers", line)
		}
		ranges = append(ranges, Range{inside, inside, size})
	}
	return ranges, nil
}

func installed(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// granted reads a file in the form of subuid(5); one that is absent grants nothing.
func granted(path string, who []string) ([]Range, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ranges, err := parseGranted(f, who)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ranges, nil
}

// parseGranted takes the lines "USER:FIRST:COUNT" of one user, who may stand there
// by name and by number. Inside the ranges follow each other, behind root.
func parseGranted(r io.Reader, who []string) ([]Range, error) {
	var ranges []Range
	inside := uint64(1)
	for lines := bufio.NewScanner(r); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		if !ok || !contains(who, name) {
			continue
		}
		firstText, countText, ok := strings.Cut(rest, ":")
		first, err := strconv.ParseUint(firstText, 10, 32)
		count, err2 := strconv.ParseUint(strings.TrimSpace(countText), 10, 32)
		if err = errors.Join(err, err2); !ok || err != nil {
			return nil, fmt.Errorf("line %q: want USER:FIRST:COUNT", lines.Text())
		}
		if count == 0 || inside+count > allIDs {
			continue
		}
		ranges = append(ranges, Range{uint32(inside), uint32(first), uint32(count)})
		inside += count
	}
	return ranges, nil
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}

// Write maps the ids of the namespace that process pid was started in, once.
func (ids *IDs) Write(pid int) error {
	if ids.helped {
		if err := runHelper("newuidmap", pid, ids.UIDs); err != nil {
			return err
		}
		return runHelper("newgidmap", pid, ids.GIDs)
	}
	if os.Geteuid() != 0 {
		// Who could drop groups would get around files that a group must not read.
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/setgroups", pid), []byte("deny"), 0); err != nil {
			return fmt.Errorf("map groups: %w", err)
		}
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/uid_map", pid), []byte(lines(ids.UIDs)), 0); err != nil {
		return fmt.Errorf("map users: %w", err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/gid_map", pid), []byte(lines(ids.GIDs)), 0); err != nil {
		return fmt.Errorf("map groups: %w", err)
	}
	return nil
}

func lines(ranges []Range) string {
	var b strings.Builder
	for _, r := range ranges {
		fmt.Fprintf(&b, "%d %d %d\n", r.Inside, r.Outside, r.Size)
	}
	return b.String()
}

func runHelper(program string, pid int, ranges []Range) error {
	args := []string{strconv.Itoa(pid)}
	for _, r := range ranges {
		for _, n := range []uint32{r.Inside, r.Outside, r.Size} {
			args = append(args, strconv.FormatUint(uint64(n), 10))
		}
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s; it must be setuid root, know this user (/etc/passwd), and grant what /etc/subuid and /etc/subgid say; vswitch rootless run --one-id does without", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}
