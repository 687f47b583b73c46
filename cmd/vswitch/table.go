package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// printers write rows, one JSON object each, in the formats of -o, as they come: of a long
// list they hold a part.
var printers = map[string]func(w io.Writer, kind string, rows iter.Seq2[[]byte, error]) error{
	"table": printTable, "json": printJSON, "yaml": printYAML,
}

// column is one of a table: its title and the field it shows.
type column struct{ title, field string }

// table is what a person wants to see of a kind.
type table struct {
	kind    string
	columns []column
}

var tables = []table{
	{"nodes", []column{{"NAME", "name"}, {"READY", "ready"}, {"POD CIDRS", "podCIDRs"}, {"UNDERLAY", "underlay"}, {"UDP PORTS", "udpPorts"}, {"VNI", "vni"}, {"VTEP MAC", "vtepMAC"}, {"TRAINS", "trains"}}},
	{"pods", []column{{"NAMESPACE", "namespace"}, {"NAME", "name"}, {"NODE", "node"}, {"IPS", "ips"}, {"MAC", "mac"}, {"CONTAINER", "containerID"}, {"STATE", "state"}}},
	{"services", []column{{"NAMESPACE", "namespace"}, {"NAME", "name"}, {"TYPE", "type"}, {"CLUSTER IPS", "clusterIPs"}, {"EXTERNAL IPS", "externalAddresses"}, {"PORTS", "ports"}}},
	{"endpoints", []column{{"NAMESPACE", "namespace"}, {"NAME", "name"}, {"TYPE", "addressType"}, {"PORTS", "ports"}, {"ENDPOINTS", "endpoints"}}},
	{"listeners", []column{{"ADDRESS", "address"}, {"PROTOCOL", "protocol"}, {"OPEN AT", "openAt"}, {"KIND", "kind"}, {"FOR", "for"}, {"PROBLEM", "problem"}}},
	{"routes", []column{{"DESTINATION", "destination"}, {"KIND", "kind"}, {"VIA", "via"}}},
	{"flows", []column{{"PROTOCOL", "protocol"}, {"SOURCE", "source"}, {"DESTINATION", "destination"}, {"ANSWERED BY", "answeredBy"}, {"STATE", "state"}, {"FRAMES", "frames"}, {"REPLIES", "replyFrames"}, {"IDLE", "idleSeconds"}}},
	{"drops", []column{{"REASON", "name"}, {"POD", "pod"}, {"NODE", "node"}, {"PORT", "port"}, {"COUNT", "count"}}},
	{"upkeep", []column{{"OBJECT", "object"}, {"PROBLEM", "problem"}, {"SINCE", "since"}, {"FOUND", "found"}, {"MENDED", "mended"}}},
	{"processes", []column{{"NAME", "name"}, {"PID", "pid"}, {"GOROUTINES", "goroutines"}, {"HEAP", "heapBytes"}, {"LIVE", "liveBytes"}}},
}

// kindList names the kinds for a sentence.
func kindList() string {
	names := kindNames()
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

func kindNames() []string {
	var names []string
	for _, t := range tables {
		names = append(names, t.kind)
	}
	return names
}

func oneKind(_ *cobra.Command, args []string) error {
	if len(args) == 1 && slices.ContainsFunc(tables, func(t table) bool { return isKind(args[0], t.kind) }) {
		return nil
	}
	return fmt.Errorf("get %s: want one of %s", strings.Join(args, " "), kindList())
}

// isKind takes the singular too.
func isKind(arg, kind string) bool {
	arg = strings.ToLower(arg)
	return arg == kind || arg+"s" == kind || arg+"es" == kind
}

// maxAligned rows determine together how wide a table's columns are; further rows are
// wider where they have to be.
const maxAligned = 1000

func printTable(w io.Writer, kind string, rows iter.Seq2[[]byte, error]) error {
	i := slices.IndexFunc(tables, func(t table) bool { return isKind(kind, t.kind) })
	columns := tables[i].columns
	var titles []string
	for _, c := range columns {
		titles = append(titles, c.title)
	}
	a := aligned{w: w, lines: [][]string{titles}}
	for row, err := range rows {
		if err != nil {
			return errors.Join(a.flush(), err)
		}
		fields, err := decodeRow(row)
		if err != nil {
			return err
		}
		var cells []string
		for _, c := range columns {
			cells = append(cells, cell(c.field, fields[c.field]))
		}
		if err := a.add(cells); err != nil {
			return err
		}
	}
	return a.flush()
}

// aligned writes lines of cells below each other.
type aligned struct {
	w      io.Writer
	lines  [][]string // not written yet
	widths []int      // of the columns so far, but for the last
}

func (a *aligned) add(cells []string) error {
	a.lines = append(a.lines, cells)
	if len(a.lines) < maxAligned {
		return nil
	}
	return a.flush()
}

func (a *aligned) flush() error {
	for _, cells := range a.lines {
		for len(a.widths) < len(cells)-1 {
			a.widths = append(a.widths, 0)
		}
		for i := range a.widths {
			a.widths[i] = max(a.widths[i], utf8.RuneCountInString(cells[i]))
		}
	}
	var out bytes.Buffer
	for _, cells := range a.lines {
		for i, width := range a.widths {
			fmt.Fprintf(&out, "%-*s  ", width, cells[i])
		}
		fmt.Fprintln(&out, cells[len(cells)-1])
	}
	a.lines = a.lines[:0]
	_, err := a.w.Write(out.Bytes())
	return err
}

// decodeRow keeps numbers as they are written.
func decodeRow(row []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(row))
	dec.UseNumber()
	var fields map[string]any
	err := dec.Decode(&fields)
	return fields, err
}

// cell is a field's value in one column: lists joined, objects abbreviated.
func cell(field string, v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case string:
		if v == "" {
			return "-"
		}
		return v
	case []any:
		var parts []string
		for _, x := range v {
			parts = append(parts, cell(field, x))
		}
		if len(parts) == 0 {
			return "-"
		}
		return strings.Join(parts, ",")
	case map[string]any:
		return abbreviate(field, v)
	}
	return fmt.Sprint(v)
}

// abbreviate is a port as 80:30080/TCP and an endpoint as its address, with what
// is unusual about it.
func abbreviate(field string, v map[string]any) string {
	if field == "endpoints" {
		s := cell("", v["addresses"])
		if policies, ok := v["takesNew"].([]any); ok && len(policies) == 0 {
			s += "(not serving new)"
		}
		return s
	}
	s := cell("", v["port"])
	if p, ok := v["nodePort"]; ok {
		s += ":" + cell("", p)
	}
	return s + "/" + cell("", v["protocol"])
}

// printJSON writes one array, indented.
func printJSON(w io.Writer, _ string, rows iter.Seq2[[]byte, error]) error {
	var out bytes.Buffer
	out.WriteByte('[')
	some := false
	for row, err := range rows {
		if err != nil {
			return err
		}
		if some {
			out.WriteByte(',')
		}
		some = true
		out.WriteString("\n  ")
		if err := json.Indent(&out, row, "  ", "  "); err != nil {
			return err
		}
		if _, err := out.WriteTo(w); err != nil {
			return err
		}
	}
	if some {
		out.WriteByte('\n')
	}
	out.WriteString("]\n")
	_, err := out.WriteTo(w)
	return err
}

// printYAML writes one list.
func printYAML(w io.Writer, _ string, rows iter.Seq2[[]byte, error]) error {
	some := false
	for row, err := range rows {
		if err != nil {
			return err
		}
		some = true
		text, err := yaml.JSONToYAML(slices.Concat([]byte{'['}, row, []byte{']'})) // a list of one
		if err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	if !some {
		_, err := fmt.Fprintln(w, "[]")
		return err
	}
	return nil
}
