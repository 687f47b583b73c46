package api

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strconv"
)

// Protocol Buffers' encoding (protobuf.dev, Encoding), of what message.go has: strings,
// bools, uint32s, messages, lists of strings and of messages, and maps of strings.

// Wire types.
const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wire32     = 5
)

var errMalformed = errors.New("malformed message")

// marshal encodes a message; fields of the zero value are left out, as proto3 does.
func marshal(message any) []byte { return appendMessage(nil, reflect.ValueOf(message).Elem()) }

func number(f reflect.StructField) uint64 {
	n, err := strconv.ParseUint(f.Tag.Get("pb"), 10, 29)
	if err != nil {
		panic(fmt.Sprintf("api: field %s has no number", f.Name))
	}
	return n
}

func appendMessage(b []byte, m reflect.Value) []byte {
	for i := range m.NumField() {
		b = appendField(b, number(m.Type().Field(i)), m.Field(i))
	}
	return b
}

func appendField(b []byte, number uint64, v reflect.Value) []byte {
	if v.Kind() == reflect.Slice {
		for i := range v.Len() { // an element of the zero value counts
			b = appendBytes(b, number, contents(v.Index(i)))
		}
		return b
	}
	if v.IsZero() {
		return b
	}
	switch v.Kind() {
	case reflect.Bool:
		return append(binary.AppendUvarint(b, number<<3|wireVarint), 1)
	case reflect.Uint32:
		return binary.AppendUvarint(binary.AppendUvarint(b, number<<3|wireVarint), v.Uint())
	case reflect.Map:
		for entry := v.MapRange(); entry.Next(); {
			pair := appendBytes(nil, 1, []byte(entry.Key().String()))
			b = appendBytes(b, number, appendBytes(pair, 2, []byte(entry.Value().String())))
		}
		return b
	}
	return appendBytes(b, number, contents(v))
}

// contents are those of a string or a message.
func contents(v reflect.Value) []byte {
	if v.Kind() == reflect.String {
		return []byte(v.String())
	}
	return appendMessage(nil, v)
}

func appendBytes(b []byte, number uint64, contents []byte) []byte {
	b = binary.AppendUvarint(b, number<<3|wireBytes)
	b = binary.AppendUvarint(b, uint64(len(contents)))
	return append(b, contents...)
}

// unmarshal decodes a message. Fields it doesn't know are left out: a newer daemon has
// more to say.
func unmarshal(b []byte, message any) error {
	return readMessage(b, reflect.ValueOf(message).Elem())
}

func readMessage(b []byte, m reflect.Value) error {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return errMalformed
		}
		b = b[n:]
		var value uint64
		var contents []byte
		switch tag & 7 {
		case wireVarint:
			if value, n = binary.Uvarint(b); n <= 0 {
				return errMalformed
			}
		case wireBytes:
			length, lengthBytes := binary.Uvarint(b)
			if lengthBytes <= 0 || length > uint64(len(b)-lengthBytes) {
				return errMalformed
			}
			n = lengthBytes + int(length)
			contents = b[lengthBytes:n]
		case wire64:
			n = 8
		case wire32:
			n = 4
		default:
			return errMalformed
		}
		if n > len(b) {
			return errMalformed
		}
		b = b[n:]
		if err := setField(m, tag, value, contents); err != nil {
			return err
		}
	}
	return nil
}

// setField gives the field that a tag names, if there is one, what came with the tag.
func setField(m reflect.Value, tag, value uint64, contents []byte) error {
	for i := range m.NumField() {
		if number(m.Type().Field(i)) != tag>>3 {
			continue
		}
		f := m.Field(i)
		scalar := f.Kind() == reflect.Bool || f.Kind() == reflect.Uint32
		if scalar && tag&7 != wireVarint || !scalar && tag&7 != wireBytes {
			return nil // another field than this of that number, as protobuf has it
		}
		switch f.Kind() {
		case reflect.Bool:
			f.SetBool(value != 0)
		case reflect.Uint32:
			f.SetUint(uint64(uint32(value)))
		case reflect.Slice:
			f.Set(reflect.Append(f, reflect.Zero(f.Type().Elem())))
			return setContents(f.Index(f.Len()-1), contents)
		case reflect.Map:
			var pair struct {
				Key   string `pb:"1"`
				Value string `pb:"2"`
			}
			if err := unmarshal(contents, &pair); err != nil {
				return err
			}
			if f.IsNil() {
				f.Set(reflect.MakeMap(f.Type()))
			}
			f.SetMapIndex(reflect.ValueOf(pair.Key), reflect.ValueOf(pair.Value))
		default:
			return setContents(f, contents)
		}
		return nil
	}
	return nil
}

func setContents(v reflect.Value, contents []byte) error {
	if v.Kind() == reflect.String {
		v.SetString(string(contents))
		return nil
	}
	return readMessage(contents, v)
}
